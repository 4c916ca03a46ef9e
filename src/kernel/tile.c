#include "tile.h"

#include <string.h>

/* The rest of the program rounds products and sums one by one, so that a vector loop and its remainder agree.
 * Here are vectors only, and these products would take 1.4 times as long: a product and a sum become one
 * instruction. */
#if defined __GNUC__ && !defined __clang__
#pragma GCC optimize("fp-contract=fast")
#endif

/* Anywhere in memory, and of the same numbers that other code sees one by one. */
typedef smoe_real vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(smoe_real)), may_alias));

/* c [TILE_ROWS, vectors TILE_VECTOR] = (+=) a b; a[r][x] stands at r a_row + x a_step. Inlined, so that the sums are
 * registers, and one of the strides is the constant 1. */
static inline __attribute__((always_inline)) void product(smoe_real *restrict c, size_t ldc,
                                                          const smoe_real *restrict a, size_t a_row,
                                                          size_t a_step, const smoe_real *restrict b,
                                                          size_t ldb, size_t vectors, size_t k, bool add) {
  vector sum[TILE_ROWS][2];
  for (size_t r = 0; r < TILE_ROWS; r++)
    for (size_t j = 0; j < vectors; j++) sum[r][j] = (vector){0};
  for (size_t x = 0; x < k; x++) {
    vector right[2];
    for (size_t j = 0; j < vectors; j++) right[j] = *(const vector *)(b + x * ldb + j * TILE_VECTOR);
    for (size_t r = 0; r < TILE_ROWS; r++)
      for (size_t j = 0; j < vectors; j++) sum[r][j] += a[r * a_row + x * a_step] * right[j];
  }
  for (size_t r = 0; r < TILE_ROWS; r++)
    for (size_t j = 0; j < vectors; j++) {
      vector *to = (vector *)(c + r * ldc + j * TILE_VECTOR);
      if (add)
        *to += sum[r][j];
      else
        *to = sum[r][j];
    }
}

void smoe_tile_rows(smoe_real *c, size_t ldc, const smoe_real *a, size_t lda, const smoe_real *b, size_t ldb,
                    size_t panel, size_t n, size_t k) {
  size_t j = 0;
  for (; j + TILE_COLUMNS <= n; j += TILE_COLUMNS, b += panel)
    product(c + j, ldc, a, lda, 1, b, ldb, 2, k, false);
  if (j < n) product(c + j, ldc, a, lda, 1, b, ldb, 1, k, false);
}

void smoe_tile_columns(smoe_real *c, size_t ldc, const smoe_real *a, size_t lda, const smoe_real *b,
                       size_t ldb, size_t n, size_t k, bool add) {
  size_t j = 0;
  for (; j + TILE_COLUMNS <= n; j += TILE_COLUMNS) product(c + j, ldc, a, 1, lda, b + j, ldb, 2, k, add);
  if (j < n) product(c + j, ldc, a, 1, lda, b + j, ldb, 1, k, add);
}

typedef smoe_real four
    __attribute__((vector_size(4 * sizeof(smoe_real)), aligned(sizeof(smoe_real)), may_alias));

/* to [4, 4], rows TILE_COLUMNS apart, = the transpose of from [4, 4]. */
static void square_transpose(smoe_real *to, const smoe_real *from, size_t ld) {
  const four a = *(const four *)from, b = *(const four *)(from + ld);
  const four c = *(const four *)(from + 2 * ld), d = *(const four *)(from + 3 * ld);
  const four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7),
             cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *(four *)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
  *(four *)(to + TILE_COLUMNS) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  *(four *)(to + 2 * TILE_COLUMNS) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  *(four *)(to + 3 * TILE_COLUMNS) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

void smoe_tile_pack(smoe_real *to, const smoe_real *from, size_t ld, size_t rows, size_t d) {
  for (size_t first = 0; first < rows;
       first += TILE_COLUMNS, from += TILE_COLUMNS * ld, to += TILE_COLUMNS * d) {
    const size_t n = rows - first < TILE_COLUMNS ? rows - first : TILE_COLUMNS;
    const size_t n_square = n / 4 * 4, d_square = d / 4 * 4;
    if (n < TILE_COLUMNS) memset(to, 0, d * TILE_COLUMNS * sizeof *to);
    for (size_t i = 0; i < n_square; i += 4)
      for (size_t x = 0; x < d_square; x += 4)
        square_transpose(to + x * TILE_COLUMNS + i, from + i * ld + x, ld);
    for (size_t i = 0; i < n; i++)
      for (size_t x = i < n_square ? d_square : 0; x < d; x++) to[x * TILE_COLUMNS + i] = from[i * ld + x];
  }
}
