/** Rotary positions. */
#include "near.h"
#include "stablemoe/kernel.h"

/* Against complex multiplication in double; what lies between the rows and behind the heads stays. */
static void rotate(size_t n, size_t h, size_t d, double base) {
  enum { T = 50, GAP = 3 };
  const size_t ld = h * d + GAP;
  smoe_real *table = values_zero(T * d), *x = values_uniform(n * ld, 1), *kept = values_copy(x, n * ld);
  double *want = near_doubles(n * ld);
  int32_t *position = values_ids(n, T, 2);
  for (size_t i = 0; i < n * ld; i++) want[i] = x[i];
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; position[i] >= 0 && j < h * (d / 2); j++) {
      const size_t pair = j % (d / 2), a = i * ld + j / (d / 2) * d + pair, b = a + d / 2;
      const double angle = position[i] / pow(base, 2.0 * (double)pair / (double)d);
      want[a] = x[a] * cos(angle) - x[b] * sin(angle);
      want[b] = x[a] * sin(angle) + x[b] * cos(angle);
    }
  smoe_rope_table(table, T, d, base);
  smoe_rope_forward(x, ld, position, table, n, h, d);
  near_check("rope", x, want, n * ld, 1e-6, 1);
  smoe_rope_backward(x, ld, position, table, n, h, d);
  for (size_t i = 0; i < n * ld; i++) want[i] = kept[i];
  near_check("rope and back", x, want, n * ld, 1e-6, 1);
  smoe_free(table), smoe_free(x), smoe_free(kept), smoe_free(want), smoe_free(position);
}

/* What it is for: the product of a rotated q and a rotated k depends on the distance of their positions alone. */
static void relative(void) {
  enum { T = 40, D = 16 };
  smoe_real *table = values_zero(T * D), *q = values_uniform(D, 1), *k = values_uniform(D, 2);
  double first = 0;
  smoe_rope_table(table, T, D, 10000);
  for (int32_t shift = 0; shift < 30; shift++) {
    smoe_real a[D], b[D];
    const int32_t at_q = shift + 7, at_k = shift;
    memcpy(a, q, sizeof a), memcpy(b, k, sizeof b);
    smoe_rope_forward(a, D, &at_q, table, 1, 1, D);
    smoe_rope_forward(b, D, &at_k, table, 1, 1, D);
    const double product = smoe_dot(a, b, D);
    if (shift == 0) first = product;
    CHECK(fabs(product - first) <= 1e-5, "shifted by %d: %g, not %g", (int)shift, product, first);
  }
  smoe_free(table), smoe_free(q), smoe_free(k);
}

int main(void) {
  rotate(0, 2, 4, 10000);
  rotate(9, 1, 2, 10000);
  rotate(20, 3, 20, 10000);
  rotate(8, 2, 64, 500000);
  relative();
  return test_verdict("rope");
}
