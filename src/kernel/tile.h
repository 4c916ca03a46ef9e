/** Small products of matrices in registers: TILE_ROWS rows of the result at a time, operands where they stand.
 *
 *  BLAS packs its operands at every call and wants large ones. Attention multiplies small blocks that are in
 *  the cache already, and cuts them along the causal diagonal; there these are faster.
 *  Every element is one sum in the order of k, so its bits follow from k alone, whatever the size of a tile.
 */
#ifndef STABLEMOE_KERNEL_TILE_H
#define STABLEMOE_KERNEL_TILE_H

#include <stdbool.h>

#include "stablemoe/real.h"

/* A tile is TILE_ROWS rows of two vectors: with the operands that is what the registers hold. */
#ifdef __AVX512F__
enum { TILE_ROWS = 8, VECTOR_BYTES = 64 };
#elif defined __AVX__
enum { TILE_ROWS = 6, VECTOR_BYTES = 32 };
#else
enum { TILE_ROWS = 6, VECTOR_BYTES = 16 };
#endif

/** Numbers in a vector, and columns of a tile. */
enum { TILE_VECTOR = VECTOR_BYTES / sizeof(smoe_real), TILE_COLUMNS = 2 * TILE_VECTOR };

/** The least multiple of step that is not below n. */
static inline size_t round_up(size_t n, size_t step) {
  return (n + step - 1) / step * step;
}

/** c [TILE_ROWS, n] = a [TILE_ROWS, k] b [k, n].  Local.
 *
 *  n        a multiple of TILE_VECTOR
 *  b        TILE_COLUMNS columns [k, TILE_COLUMNS] at a time: their rows lie ldb apart, the next ones `panel` further on
 *           (so a plain matrix has panel = TILE_COLUMNS, packed panels have ldb = TILE_COLUMNS)
 */
void smoe_tile_rows(smoe_real *c, size_t ldc, const smoe_real *a, size_t lda, const smoe_real *b, size_t ldb,
                    size_t panel, size_t n, size_t k);

/** c [TILE_ROWS, n] = (or += where add) a [k, TILE_ROWS]^T b [k, n];  n a multiple of TILE_VECTOR.  Local. */
void smoe_tile_columns(smoe_real *c, size_t ldc, const smoe_real *a, size_t lda, const smoe_real *b,
                       size_t ldb, size_t n, size_t k, bool add);

/** The transpose of from [rows, d] in panels: to [rows / TILE_COLUMNS, d, TILE_COLUMNS], zeros behind the last row.  Local.
 *
 *  to       out  round_up(rows, TILE_COLUMNS) d reals
 */
void smoe_tile_pack(smoe_real *to, const smoe_real *from, size_t ld, size_t rows, size_t d);

#endif
