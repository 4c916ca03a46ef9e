/** Causal self-attention against the whole score matrix in double. */
#include "near.h"
#include "stablemoe/kernel.h"

typedef struct reference {
  size_t t, h, d;
  double *out, *lse, *dqkv;
} reference;

static void reference_query(reference *r, const smoe_real *qkv, const smoe_real *dout, double *p, size_t s,
                            size_t head, size_t i) {
  const size_t t = r->t, d = r->d, c = r->h * d, place = (s * t + i) * c + head * d;
  const smoe_real *first = qkv + s * t * 3 * c + head * d; /* of the sequence */
  double *dfirst = r->dqkv + s * t * 3 * c + head * d, sum = 0, delta = 0;
  const double scale = 1 / sqrt((double)d);
  for (size_t j = 0; j <= i; j++) {
    double score = 0;
    for (size_t x = 0; x < d; x++) score += (double)first[i * 3 * c + x] * first[j * 3 * c + c + x];
    sum += p[j] = exp(scale * score);
  }
  r->lse[(s * r->h + head) * t + i] = log(sum);
  for (size_t j = 0; j <= i; j++) {
    p[j] /= sum;
    for (size_t x = 0; x < d; x++) r->out[place + x] += p[j] * first[j * 3 * c + 2 * c + x];
  }
  for (size_t x = 0; x < d; x++) delta += dout[place + x] * r->out[place + x];
  for (size_t j = 0; j <= i; j++) {
    double dp = 0;
    for (size_t x = 0; x < d; x++) dp += (double)dout[place + x] * first[j * 3 * c + 2 * c + x];
    const double dscore = p[j] * (dp - delta) * scale;
    for (size_t x = 0; x < d; x++) {
      dfirst[i * 3 * c + x] += dscore * first[j * 3 * c + c + x];
      dfirst[j * 3 * c + c + x] += dscore * first[i * 3 * c + x];
      dfirst[j * 3 * c + 2 * c + x] += p[j] * dout[place + x];
    }
  }
}

static void attention(size_t s, size_t t, size_t h, size_t d) {
  const size_t n = s * t * h * d, n_scratch = smoe_attention_scratch(t, d);
  smoe_real *qkv = values_uniform(3 * n, 1), *dout = values_uniform(n, 2), *dqkv = values_zero(3 * n);
  smoe_real *out = values_zero(n), *lse = values_zero(s * h * t), *scratch = values_zero(n_scratch + 1);
  double *p = near_doubles(t);
  reference r = {t, h, d, near_doubles(n), near_doubles(s * h * t), near_doubles(3 * n)};
  for (size_t i = 0; i < 3 * n; i++) qkv[i] *= 3;
  for (size_t i = 0; i < s * h * t; i++) reference_query(&r, qkv, dout, p, i / (h * t), i / t % h, i % t);

  for (size_t i = 0; i < n_scratch; i++) scratch[i] = NAN;
  for (size_t i = 0; i < n; i++) out[i] = NAN;
  for (size_t i = 0; i < 3 * n; i++) dqkv[i] = NAN;
  scratch[n_scratch] = 42;
  smoe_attention_forward(out, lse, qkv, scratch, s, t, h, d);
  smoe_attention_backward(dqkv, dout, qkv, out, lse, scratch, s, t, h, d);
  CHECK(scratch[n_scratch] == 42, "wrote beyond the scratch");
  near_check("attention out", out, r.out, n, 1e-5, 1);
  near_check("attention lse", lse, r.lse, s * h * t, 1e-5, 1);
  smoe_real *row = values_zero(h * t + 1);
  for (size_t i = 0; i < s * t; i++) {
    for (size_t j = 0; j < h * d; j++) out[i * h * d + j] = NAN;
    row[h * (i % t + 1)] = 42;
    smoe_attention_row(out + i * h * d, qkv + i / t * t * 3 * h * d, row, i % t, h, d);
    CHECK(row[h * (i % t + 1)] == 42, "wrote beyond the scratch");
  }
  near_check("attention row", out, r.out, n, 1e-5, 1);
  smoe_free(row);
  near_check("attention dqkv", dqkv, r.dqkv, 3 * n, 1e-5, 10);
  smoe_free(qkv), smoe_free(dout), smoe_free(dqkv), smoe_free(out), smoe_free(lse), smoe_free(scratch);
  smoe_free(p), smoe_free(r.out), smoe_free(r.lse), smoe_free(r.dqkv);
}

/* A token must not see what stands behind it. */
static void causal(void) {
  enum { T = 100, D = 8, H = 2, C = H * D, SEEN = 70 };
  smoe_real *qkv = values_uniform(T * 3 * C, 1), *scratch = values_zero(smoe_attention_scratch(T, D));
  smoe_real *a = values_zero(T * C), *b = values_zero(T * C), *lse = values_zero(T * H);
  smoe_attention_forward(a, lse, qkv, scratch, 1, T, H, D);
  for (size_t i = SEEN * 3 * C; i < T * 3 * C; i++) qkv[i] += 1;
  smoe_attention_forward(b, lse, qkv, scratch, 1, T, H, D);
  near_same_bits("what came before", a, b, SEEN * C);
  CHECK(memcmp(a + SEEN * C, b + SEEN * C, C * sizeof *a) != 0, "the change is not seen at all");
  smoe_free(qkv), smoe_free(scratch), smoe_free(a), smoe_free(b), smoe_free(lse);
}

/* A key whose every score is -infinity counts as if it were not there; a query that sees nothing else gets NaN, and
 * does not pass it on. */
static void hidden_key(void) {
  enum { T = 40, D = 6, C = D };
  smoe_real *qkv = values_uniform(T * 3 * C, 1), *scratch = values_zero(smoe_attention_scratch(T, D));
  smoe_real *all = values_zero(T * C), *rest = values_zero(T * C), *lse = values_zero(T),
            *lse_rest = values_zero(T);
  for (size_t i = 0; i < T; i++) qkv[i * 3 * C] = 1;
  qkv[C] = -(smoe_real)INFINITY;
  smoe_attention_forward(all, lse, qkv, scratch, 1, T, 1, D);
  smoe_attention_forward(rest, lse_rest, qkv + 3 * C, scratch, 1, T - 1, 1, D);
  CHECK(isnan(all[0]) && isnan(lse[0]), "a query without a key: %g, lse %g", (double)all[0], (double)lse[0]);
  for (size_t i = 0; i < (T - 1) * C; i++)
    CHECK(fabs((double)(all[C + i] - rest[i])) <= 1e-5, "a hidden key counts at %zu: %g, not %g", i,
          (double)all[C + i], (double)rest[i]);
  for (size_t i = 0; i + 1 < T; i++)
    CHECK(fabs((double)(lse[1 + i] - lse_rest[i])) <= 1e-5, "a hidden key counts in lse %zu", i);
  smoe_free(qkv), smoe_free(scratch), smoe_free(all), smoe_free(rest), smoe_free(lse), smoe_free(lse_rest);
}

int main(void) {
  attention(0, 4, 2, 2);
  attention(2, 0, 2, 2);
  attention(1, 1, 1, 1);
  attention(2, 5, 3, 7);
  attention(1, 63, 1, 4);
  attention(2, 64, 2, 32);
  attention(1, 65, 2, 8);
  attention(1, 200, 2, 16);
  attention(1, 33, 2, 20);
  attention(2, 49, 1, 40);
  attention(1, 7, 1, 64);
  causal();
  hidden_key();
  return test_verdict("attention");
}
