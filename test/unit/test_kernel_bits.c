/** The bits of a result depend on its row and the sizes: not on threads, neighbours, or how work is cut. */
#include "near.h"
#include "stablemoe/kernel.h"

#include "../../src/kernel/vector.h"

enum { S = 4, T = 160, H = 4, D = 16, N = S * T, C = H * D, F = 300, V = 500, N_RESULTS = 20 };

/* Every kernel but the plain products, whose bits are BLAS's; the results stand one after another. */
static size_t all_kernels(smoe_real *result, size_t size) {
  smoe_real *at = result;
#define TAKE(pointer, n)                                                                                     \
  smoe_real *pointer = at;                                                                                   \
  at += (n);                                                                                                 \
  if ((size_t)(at - result) > size) return 0
  smoe_real *x = values_uniform(N * C, 1), *w = values_uniform(F * C, 2), *b = values_uniform(F, 3);
  smoe_real *dy = values_uniform(N * F, 4), *qkv = values_uniform(N * 3 * C, 5),
            *table = values_uniform(V * C, 6);
  smoe_real *scratch = values_zero(smoe_attention_scratch(T, D));
  int32_t *token = values_ids(N, V, 7);
  smoe_real *y = values_uniform(N * F, 8), *dx = values_uniform(N * C, 9), *dw = values_zero(F * C);
  TAKE(db, F); /* dw is BLAS's */
  smoe_linear_backward_weight(dw, db, dy, x, N, C, F);
  TAKE(normed, N * C);
  TAKE(mean, N);
  TAKE(rstd, N);
  smoe_norm_forward(normed, mean, rstd, x, w, b, N, C);
  TAKE(dnormed, N * C);
  TAKE(dgamma, C);
  TAKE(dbeta, C);
  smoe_norm_backward(dnormed, dgamma, dbeta, dx, x, w, mean, rstd, N, C);
  TAKE(rms_normed, N * C);
  TAKE(rrms, N);
  smoe_rms_norm_forward(rms_normed, rrms, x, w, N, C);
  TAKE(rms_dnormed, N * C);
  TAKE(rms_dgamma, C);
  smoe_rms_norm_backward(rms_dnormed, rms_dgamma, dx, x, w, rrms, N, C);
  TAKE(attended, N * C);
  TAKE(lse, S * H * T);
  smoe_attention_forward(attended, lse, qkv, scratch, S, T, H, D);
  TAKE(dqkv, N * 3 * C);
  smoe_attention_backward(dqkv, x, qkv, attended, lse, scratch, S, T, H, D);
  TAKE(grouped, N * C);
  const int32_t length[S] = {T, T / 2, 1, T - 1};
  const smoe_attention shape = {.sequences = S,
                                .queries = T,
                                .keys = T,
                                .heads = H,
                                .kv_heads = H / 2,
                                .width = D,
                                .q_stride = 3 * C,
                                .kv_stride = 3 * C,
                                .query_length = length,
                                .key_length = length};
  TAKE(grouped_lse, S * H * T);
  smoe_attend_forward(grouped, grouped_lse, qkv, qkv + C, qkv + 2 * C, scratch, &shape);
  TAKE(grouped_dqkv, N * 3 * C);
  smoe_attend_backward(grouped_dqkv, grouped_dqkv + C, grouped_dqkv + 2 * C, x, qkv, qkv + C, qkv + 2 * C,
                       grouped, grouped_lse, scratch, &shape);
  TAKE(embedded, N * C);
  smoe_embedding_forward(embedded, token, table, x, 2, S, T, C);
  TAKE(dtable, V * C);
  TAKE(dposition, T * C);
  smoe_embedding_backward(dtable, dposition, x, token, 2, S, T, C);
  TAKE(p, N * F);
  smoe_softmax_forward(p, dy, N, F);
  TAKE(logits, N * F);
  TAKE(loss, N);
  memcpy(logits, dy, N * F * sizeof *logits);
  for (size_t i = 0; i < N; i++) token[i] = token[i] < 0 ? -1 : token[i] % F;
  smoe_cross_entropy(loss, logits, token, 1, 0.5, true, N, F);
  TAKE(smoothed, N * F);
  TAKE(smoothed_loss, N);
  TAKE(nll, N);
  memcpy(smoothed, dy, N * F * sizeof *smoothed);
  smoe_cross_entropy_smoothed(smoothed_loss, nll, smoothed, token, 1, 0.1, 0.5, true, N, F);
  TAKE(h, N * F);
  memcpy(h, y, N * F * sizeof *h);
  smoe_bias_relu_forward(h, b, N, F);
  smoe_relu_backward(dy, h, N * F);
  smoe_add(h, dy, N * F);
  smoe_add_rows_scaled(h, x, C, y, N, F);
  TAKE(gelu, N * F);
  TAKE(before, N * F);
  memcpy(before, y, N * F * sizeof *before);
  smoe_bias_gelu_forward(gelu, before, b, N, F);
  smoe_gelu_backward(before, gelu, N * F);
  TAKE(gated, N * F / 2);
  smoe_swiglu_forward(gated, y, N, F / 2);
  TAKE(dgated, N * F);
  smoe_swiglu_backward(dgated, gated, y, N, F / 2);
  TAKE(turned, N * 3 * C);
  memcpy(turned, qkv, N * 3 * C * sizeof *turned);
  smoe_rope_forward(turned, 3 * C, token, table, N, 2 * H, D);
  TAKE(dropped, N * F);
  memcpy(dropped, y, N * F * sizeof *dropped);
  smoe_dropout_apply(dropped, NULL, 0, N, F, &(smoe_dropout){.share = 0.3, .seed = 1});
  TAKE(m, N * F);
  TAKE(v, N * F);
  TAKE(weight, N * F);
  memcpy(weight, y, N * F * sizeof *weight);
  smoe_adam_step(weight, m, v, h, N * F, &(smoe_adam){0.1, 0.9, 0.98, 1e-8, 0.1, 0.1, 0.02, 0.5});
  TAKE(sums, 2);
  sums[0] = smoe_dot(y, h, N * F);
  sums[1] = (smoe_real)smoe_sum_squares(y, N * F);
#undef TAKE
  smoe_free(x), smoe_free(w), smoe_free(b), smoe_free(dy), smoe_free(qkv), smoe_free(table);
  smoe_free(scratch), smoe_free(token), smoe_free(y), smoe_free(dx), smoe_free(dw);
  return (size_t)(at - result);
}

static void threads(void) {
  /* The smallest of the arrays above: below this size kernels use one thread whatever they may. */
  CHECK(N * C > PARALLEL_MIN, "%d values are too few for threads: they begin beyond %d", N * C, PARALLEL_MIN);
  const size_t size = (size_t)N_RESULTS * N * F;
  smoe_real *one = values_zero(size), *more = values_zero(size);
  smoe_threads_set(1);
  const size_t n = all_kernels(one, size);
  CHECK(n > 0, "more results than expected");
  for (int i = 2; i <= 3; i++) {
    memset(more, 0, size * sizeof *more);
    smoe_threads_set(i);
    all_kernels(more, size);
    for (size_t j = 0; j < n; j++)
      if (memcmp(one + j, more + j, sizeof *one) != 0) {
        CHECK(false, "%d threads: result %zu of %zu is %.9g, not %.9g", i, j, n, (double)more[j],
              (double)one[j]);
        break;
      }
  }
  smoe_threads_set(1);
  smoe_free(one), smoe_free(more);
}

/* A row alone has the bits it has among others. */
static void neighbours(void) {
  enum { ROWS = 21, WIDTH = 77 };
  smoe_real *x = values_uniform(ROWS * WIDTH, 1), *gamma = values_uniform(WIDTH, 2),
            *y = values_zero(ROWS * WIDTH), *z = values_zero(ROWS * WIDTH);
  smoe_real *p = values_zero(ROWS * WIDTH), *logits = values_copy(x, ROWS * WIDTH), loss[ROWS], mean[ROWS],
            rstd[ROWS], rrms[ROWS];
  smoe_real row[WIDTH], row_loss, row_mean, row_rstd;
  int32_t *target = values_ids(ROWS, WIDTH, 3);
  smoe_norm_forward(y, mean, rstd, x, gamma, gamma, ROWS, WIDTH);
  smoe_rms_norm_forward(z, rrms, x, gamma, ROWS, WIDTH);
  smoe_softmax_forward(p, x, ROWS, WIDTH);
  smoe_cross_entropy(loss, logits, target, 1, 0.5, true, ROWS, WIDTH);
  for (size_t i = 0; i < ROWS; i++) {
    smoe_norm_forward(row, &row_mean, &row_rstd, x + i * WIDTH, gamma, gamma, 1, WIDTH);
    near_same_bits("norm of a row", row, y + i * WIDTH, WIDTH);
    smoe_rms_norm_forward(row, &row_rstd, x + i * WIDTH, gamma, 1, WIDTH);
    near_same_bits("rms norm of a row", row, z + i * WIDTH, WIDTH);
    smoe_softmax_forward(row, x + i * WIDTH, 1, WIDTH);
    near_same_bits("softmax of a row", row, p + i * WIDTH, WIDTH);
    memcpy(row, x + i * WIDTH, sizeof row);
    smoe_cross_entropy(&row_loss, row, target + i, 1, 0.5, true, 1, WIDTH);
    near_same_bits("cross entropy of a row", row, logits + i * WIDTH, WIDTH);
    near_same_bits("loss of a row", &row_loss, loss + i, 1);
  }
  smoe_free(x), smoe_free(gamma), smoe_free(y), smoe_free(z), smoe_free(p), smoe_free(logits);
  smoe_free(target);
}

/* The optimizer's slices depend on the number of ranks, so a step must not depend on the slices. */
static void slices(void) {
  enum { SIZE = 10000, CUT = 1024 };
  const smoe_adam adam = {0.1, 0.9, 0.98, 1e-8, 0.1, 0.1, 0.02, 0.5};
  smoe_real *w[2], *m[2], *v[2], *g = values_uniform(SIZE, 4);
  for (int i = 0; i < 2; i++)
    w[i] = values_uniform(SIZE, 1), m[i] = values_uniform(SIZE, 2), v[i] = values_zero(SIZE);
  smoe_adam_step(w[0], m[0], v[0], g, SIZE, &adam);
  for (size_t i = 0; i < SIZE; i += CUT)
    smoe_adam_step(w[1] + i, m[1] + i, v[1] + i, g + i, SIZE - i < CUT ? SIZE - i : CUT, &adam);
  near_same_bits("adam w in slices", w[0], w[1], SIZE);
  near_same_bits("adam m in slices", m[0], m[1], SIZE);
  near_same_bits("adam v in slices", v[0], v[1], SIZE);
  for (int i = 0; i < 2; i++) smoe_free(w[i]), smoe_free(m[i]), smoe_free(v[i]);
  smoe_free(g);
}

int main(void) {
  threads();
  neighbours();
  slices();
  return test_verdict("kernel_bits");
}
