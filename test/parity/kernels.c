/* Write inputs and results of kernels for test_kernels.py:  kernels OUTPUT
 *
 * Each array is a line "<case>/<name> <count>", then so many doubles.
 */
#include <stdio.h>

#include "stablemoe/kernel.h"
#include "values.h"

static FILE *output;
static const char *name_of_case;

static void write_doubles(const char *name, const double *x, size_t n) {
  fprintf(output, "%s/%s %zu\n", name_of_case, name, n);
  fwrite(x, sizeof *x, n, output);
}

static void write_reals(const char *name, const smoe_real *x, size_t n) {
  double *copy = smoe_alloc(n * sizeof *copy + 1);
  for (size_t i = 0; i < n; i++) copy[i] = x[i];
  write_doubles(name, copy, n);
  smoe_free(copy);
}

static void write_number(const char *name, double x) {
  write_doubles(name, &x, 1);
}

static void rms_norm(void) {
  enum { N = 7, C = 45 };
  name_of_case = "rms_norm";
  smoe_real *x = values_uniform(N * C, 1), *gamma = values_uniform(C, 2), *dy = values_uniform(N * C, 3);
  smoe_real *y = values_zero(N * C), *rrms = values_zero(N), *dx = values_zero(N * C),
            *dgamma = values_zero(C);
  smoe_rms_norm_forward(y, rrms, x, gamma, N, C);
  smoe_rms_norm_backward(dx, dgamma, dy, x, gamma, rrms, N, C);
  write_number("width", C);
  write_reals("x", x, N * C), write_reals("gamma", gamma, C), write_reals("dy", dy, N * C);
  write_reals("y", y, N * C), write_reals("dx", dx, N * C), write_reals("dgamma", dgamma, C);
  smoe_free(x), smoe_free(gamma), smoe_free(dy), smoe_free(y), smoe_free(rrms), smoe_free(dx);
  smoe_free(dgamma);
}

static void activations(void) {
  enum { N = 6, F = 37 };
  name_of_case = "gelu";
  smoe_real *x = values_uniform(2 * N * F, 1), *b = values_uniform(F, 2), *dy = values_uniform(N * F, 3);
  smoe_real *y = values_zero(N * F), *kept = values_zero(N * F), *dx = values_copy(dy, N * F);
  for (size_t i = 0; i < 2 * N * F; i++) x[i] *= 4;
  memcpy(kept, x, N * F * sizeof *x);
  smoe_bias_gelu_forward(y, kept, b, N, F);
  smoe_gelu_backward(dx, kept, N * F);
  write_number("width", F);
  write_reals("x", x, N * F), write_reals("b", b, F), write_reals("dy", dy, N * F);
  write_reals("y", y, N * F), write_reals("dx", dx, N * F);

  name_of_case = "swiglu";
  smoe_real *dab = values_zero(2 * N * F);
  smoe_swiglu_forward(y, x, N, F);
  smoe_swiglu_backward(dab, dy, x, N, F);
  write_number("width", F);
  write_reals("ab", x, 2 * N * F), write_reals("dh", dy, N * F);
  write_reals("h", y, N * F), write_reals("dab", dab, 2 * N * F);
  smoe_free(x), smoe_free(b), smoe_free(dy), smoe_free(y), smoe_free(kept), smoe_free(dx), smoe_free(dab);
}

static void rope(void) {
  enum { N = 9, H = 2, D = 12, T = 40 };
  name_of_case = "rope";
  smoe_real *table = values_zero(T * D), *x = values_uniform(N * H * D, 1);
  int32_t *position = values_ids(N, T, 2);
  double place[N];
  for (size_t i = 0; i < N; i++) place[i] = position[i];
  smoe_rope_table(table, T, D, 5000);
  write_number("heads", H), write_number("base", 5000), write_doubles("position", place, N);
  write_reals("x", x, N * H * D);
  smoe_rope_forward(x, H * D, position, table, N, H, D);
  write_reals("y", x, N * H * D);
  smoe_free(table), smoe_free(x), smoe_free(position);
}

/* One call of attention; k and v are in one buffer of rows [k, v]. */
static void attend(const char *name, smoe_attention a) {
  name_of_case = name;
  const size_t kv_width = a.kv_heads * a.width;
  a.q_stride = a.heads * a.width, a.kv_stride = 2 * kv_width;
  const size_t n_q = a.sequences * a.queries * a.q_stride, n_kv = a.sequences * a.keys * a.kv_stride;
  smoe_real *q = values_uniform(n_q, 1), *kv = values_uniform(n_kv, 2), *dout = values_uniform(n_q, 3);
  smoe_real *out = values_zero(n_q), *lse = values_zero(a.sequences * a.heads * a.queries);
  smoe_real *dq = values_zero(n_q), *dkv = values_zero(n_kv), *scratch = values_zero(smoe_attend_scratch(&a));
  for (size_t i = 0; i < n_q; i++) q[i] *= 4;
  smoe_attend_forward(out, lse, q, kv, kv + kv_width, scratch, &a);
  smoe_attend_backward(dq, dkv, dkv + kv_width, dout, q, kv, kv + kv_width, out, lse, scratch, &a);
  const double shape[] = {(double)a.sequences, (double)a.queries,  (double)a.keys,
                          (double)a.heads,     (double)a.kv_heads, (double)a.causal};
  double *length = smoe_alloc(3 * a.sequences * sizeof *length);
  for (size_t s = 0; s < a.sequences; s++) {
    length[s] = a.query_length ? a.query_length[s] : (double)a.queries;
    length[a.sequences + s] = a.key_length ? a.key_length[s] : (double)a.keys;
    length[2 * a.sequences + s] = a.offset ? a.offset[s] : 0;
  }
  write_doubles("shape", shape, 6), write_doubles("length", length, 3 * a.sequences);
  write_reals("q", q, n_q), write_reals("kv", kv, n_kv), write_reals("dout", dout, n_q);
  write_reals("out", out, n_q), write_reals("dq", dq, n_q), write_reals("dkv", dkv, n_kv);
  smoe_free(q), smoe_free(kv), smoe_free(dout), smoe_free(out), smoe_free(lse), smoe_free(dq);
  smoe_free(dkv), smoe_free(scratch), smoe_free(length);
}

static void attends(void) {
  const int32_t queries[] = {30, 4, 11}, keys[] = {17, 44, 9}, offset[] = {2, 13, 0};
  attend("attend_cross", (smoe_attention){.sequences = 3,
                                          .queries = 30,
                                          .keys = 44,
                                          .heads = 3,
                                          .kv_heads = 3,
                                          .width = 10,
                                          .query_length = queries,
                                          .key_length = keys});
  attend("attend_grouped", (smoe_attention){.sequences = 3,
                                            .queries = 30,
                                            .keys = 44,
                                            .heads = 6,
                                            .kv_heads = 2,
                                            .width = 16,
                                            .causal = true,
                                            .query_length = queries,
                                            .key_length = keys,
                                            .offset = offset});
}

static void dropout(void) {
  enum { N = 3, C = 300 };
  name_of_case = "dropout";
  const smoe_dropout dropout = {.share = 0.3, .seed = UINT64_C(0x123456789abc), .update = 77, .site = 5};
  const double about[] = {dropout.share, (double)dropout.seed, dropout.update, dropout.site, 1000};
  smoe_real *x = values_uniform(N * C, 1);
  write_doubles("about", about, 5), write_number("width", C), write_reals("x", x, N * C);
  smoe_dropout_apply(x, NULL, 1000, N, C, &dropout);
  write_reals("y", x, N * C);
  smoe_free(x);
}

static void smoothing(void) {
  enum { N = 9, V = 50 };
  name_of_case = "smoothing";
  smoe_real *x = values_uniform(N * V, 1), *loss = values_zero(N), *nll = values_zero(N);
  int32_t *target = values_ids(N, V, 2);
  double id[N];
  for (size_t i = 0; i < N; i++) id[i] = target[i];
  for (size_t i = 0; i < N * V; i++) x[i] *= 5;
  write_doubles("target", id, N), write_number("epsilon", 0.1), write_number("scale", 0.5);
  write_reals("x", x, N * V);
  smoe_cross_entropy_smoothed(loss, nll, x, target, 1, 0.1, (smoe_real)0.5, true, N, V);
  write_reals("loss", loss, N), write_reals("nll", nll, N), write_reals("dx", x, N * V);
  smoe_free(x), smoe_free(loss), smoe_free(nll), smoe_free(target);
}

int main(int argc, char **argv) {
  if (argc != 2 || !(output = fopen(argv[1], "wb"))) {
    fprintf(stderr, "usage: kernels OUTPUT\n");
    return 2;
  }
  rms_norm();
  activations();
  rope();
  attends();
  dropout();
  smoothing();
  return fclose(output) ? 1 : 0;
}
