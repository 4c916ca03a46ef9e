/** Matrix products and linear maps. */
#include "near.h"
#include "stablemoe/kernel.h"
#include "stablemoe/products.h"

static double element(const smoe_real *a, size_t ld, bool transpose, size_t i, size_t j) {
  return transpose ? a[j * ld + i] : a[i * ld + j];
}

static void gemm(bool ta, bool tb, size_t m, size_t n, size_t k, double alpha, double beta) {
  const size_t pad = 3, lda = (ta ? m : k) + pad, ldb = (tb ? k : n) + pad, ldc = n + pad;
  smoe_real *a = values_uniform((ta ? k : m) * lda, 1), *b = values_uniform((tb ? n : k) * ldb, 2);
  smoe_real *c = values_uniform(m * ldc, 3);
  double *want = near_doubles(m * ldc);
  for (size_t i = 0; i < m * ldc; i++) want[i] = c[i];
  for (size_t i = 0; i < m; i++)
    for (size_t j = 0; j < n; j++) {
      double sum = 0;
      for (size_t l = 0; l < k; l++) sum += element(a, lda, ta, i, l) * element(b, ldb, tb, l, j);
      want[i * ldc + j] = alpha * sum + (beta == 0 ? 0 : beta * want[i * ldc + j]);
      if (beta == 0) c[i * ldc + j] = NAN; /* must not be read */
    }
  smoe_gemm(ta, tb, m, n, k, (smoe_real)alpha, a, lda, b, ldb, (smoe_real)beta, c, ldc);
  near_check("gemm", c, want, m * ldc, 1e-5, 1);
  smoe_free(a), smoe_free(b), smoe_free(c), smoe_free(want);
}

static void gemm_all(void) {
  const size_t size[] = {0, 1, 5, 16, 67};
  for (size_t i = 0; i < 5; i++)
    for (size_t j = 0; j < 5; j++)
      for (size_t l = 0; l < 5; l++)
        for (int flags = 0; flags < 4; flags++) {
          gemm(flags & 1, flags & 2, size[i], size[j], size[l], 1, 0);
          gemm(flags & 1, flags & 2, size[i], size[j], size[l], 0.5, 1);
          gemm(flags & 1, flags & 2, size[i], size[j], size[l], 1, -2);
        }
  gemm(false, true, 130, 300, 200, 1, 0); /* beyond the small-matrix path */
  gemm(true, false, 130, 300, 200, 1, 1);
}

/* Where an expert's rows lie in memory follows from the number of ranks; the bits must not. */
static void gemm_place(bool ta, bool tb, size_t m, size_t n, size_t k) {
  enum { SHIFTS = 16 };
  const size_t lda = ta ? m : k, ldb = tb ? k : n;
  smoe_real *a = values_uniform(m * k + SHIFTS, 1), *b = values_uniform(n * k + SHIFTS, 2);
  smoe_real *c = values_uniform(m * n + SHIFTS, 3), *want = values_zero(m * n);
  smoe_gemm(ta, tb, m, n, k, 1, a, lda, b, ldb, 0, want, n);
  for (size_t shift = 1; shift < SHIFTS; shift++) {
    memmove(a + shift, a + shift - 1, m * k * sizeof *a);
    memmove(b + shift, b + shift - 1, n * k * sizeof *b);
    smoe_gemm(ta, tb, m, n, k, 1, a + shift, lda, b + shift, ldb, 0, c + SHIFTS - shift, n);
    near_same_bits("gemm elsewhere in memory", c + SHIFTS - shift, want, m * n);
  }
  smoe_free(a), smoe_free(b), smoe_free(c), smoe_free(want);
}

static void gemm_places(void) {
  const size_t size[][3] = {{1, 7, 19}, {3, 64, 33}, {37, 20, 80}, {64, 256, 32}, {130, 67, 400}};
  for (size_t i = 0; i < sizeof size / sizeof *size; i++)
    for (int flags = 0; flags < 4; flags++)
      gemm_place(flags & 1, flags & 2, size[i][0], size[i][1], size[i][2]);
}

/* y = x w^T + b */
static double linear_want(const smoe_real *x, const smoe_real *w, const smoe_real *b, size_t c, size_t i,
                          size_t j) {
  double sum = b ? b[j] : 0;
  for (size_t l = 0; l < c; l++) sum += (double)x[i * c + l] * w[j * c + l];
  return sum;
}

static void linear(size_t n, size_t c, size_t o) {
  smoe_real *x = values_uniform(n * c, 1), *w = values_uniform(o * c, 2), *b = values_uniform(o, 3);
  smoe_real *y = values_uniform(n * o, 4), *dw = values_uniform(o * c, 5), *db = values_uniform(o, 6);
  double *want = near_doubles(n * o), *want_dw = near_doubles(o * c), *want_db = near_doubles(o);
  double *want_dx = near_doubles(n * c);
  for (int with = 0; with < 2; with++) {
    for (size_t i = 0; i < n * o; i++) {
      want[i] = linear_want(x, w, with ? b : NULL, c, i / o, i % o);
      y[i] = NAN;
    }
    smoe_linear_forward(y, x, w, with ? b : NULL, n, c, o);
    near_check("linear forward", y, want, n * o, 1e-5, 1);
    for (size_t i = 0; i < n * o; i++) y[i] = NAN;
    smoe_linear_rows(y, x, w, with ? b : NULL, n, c, o);
    near_check("linear rows", y, want, n * o, 1e-5, 1);
  }

  for (size_t j = 0; j < o; j++) want_db[j] = db[j];
  for (size_t j = 0; j < o * c; j++) want_dw[j] = dw[j];
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < o; j++) {
      want_db[j] += y[i * o + j];
      for (size_t l = 0; l < c; l++) {
        want_dw[j * c + l] += (double)y[i * o + j] * x[i * c + l];
        want_dx[i * c + l] += (double)y[i * o + j] * w[j * c + l];
      }
    }
  smoe_linear_backward_weight(dw, db, y, x, n, c, o);
  near_check("linear dw", dw, want_dw, o * c, 1e-5, 10);
  near_check("linear db", db, want_db, o, 1e-5, 10);
  smoe_real *without = values_uniform(o * c, 5);
  smoe_linear_backward_weight(without, NULL, y, x, n, c, o);
  near_same_bits("linear dw without db", without, dw, o * c);

  smoe_real *dx = values_zero(n * c);
  for (size_t i = 0; i < n * c; i++) dx[i] = NAN;
  smoe_linear_backward_input(dx, y, w, n, c, o, false);
  near_check("linear dx", dx, want_dx, n * c, 1e-5, 10);
  smoe_linear_backward_input(dx, y, w, n, c, o, true);
  for (size_t i = 0; i < n * c; i++) want_dx[i] *= 2;
  near_check("linear dx added", dx, want_dx, n * c, 1e-5, 10);
  smoe_free(x), smoe_free(w), smoe_free(b), smoe_free(y), smoe_free(dw), smoe_free(db), smoe_free(dx);
  smoe_free(want), smoe_free(want_dw), smoe_free(want_db), smoe_free(want_dx), smoe_free(without);
}

/* Everything, with the products of one library. */
static void library(smoe_products_kind kind) {
  if (smoe_products_choose(kind) != SMOE_OK) return; /* not in this build */
  CHECK(kind == SMOE_PRODUCTS_AUTO || sizeof(smoe_real) == sizeof(double) || smoe_products_chosen() == kind,
        "library %d was named, and %d is used", kind, smoe_products_chosen());
  CHECK(smoe_products_chosen() != SMOE_PRODUCTS_AUTO, "no library is chosen");
  CHECK(smoe_blas_name() && smoe_blas_name()[0], "BLAS has no name");
  CHECK(smoe_blas_pin() && strchr(smoe_blas_pin(), '='), "BLAS cannot be pinned");
  CHECK(strstr(smoe_products_facts(), "L2 "), "no cache in '%s'", smoe_products_facts());
  gemm_all();
  gemm_places();
  const size_t size[] = {0, 1, 3, 33};
  for (size_t i = 0; i < 4; i++)
    for (size_t j = 0; j < 4; j++)
      for (size_t l = 0; l < 4; l++) linear(size[i], size[j], size[l]);
  linear(70, 19, 523); /* more columns than two blocks of the bias gradient, and a remainder */
}

int main(void) {
  library(SMOE_PRODUCTS_OPENBLAS);
  library(SMOE_PRODUCTS_ONEDNN);
  return test_verdict("linear");
}
