#include "stablemoe/kernel.h"

#include "vector.h"

/* Columns of the gradients that one thread adds to. */
enum { EMBEDDING_COLUMNS = 128 };

static void row_embed(smoe_real *restrict x, const smoe_real *restrict row,
                      const smoe_real *restrict position, smoe_real scale, size_t c) {
  for (size_t j = 0; j < c; j++) x[j] = scale * row[j] + position[j];
}

static void row_scale(smoe_real *restrict x, const smoe_real *restrict row, smoe_real scale, size_t c) {
  for (size_t j = 0; j < c; j++) x[j] = scale * row[j];
}

void smoe_embedding_forward(smoe_real *x, const int32_t *token, const smoe_real *table,
                            const smoe_real *position, smoe_real scale, size_t s, size_t t, size_t c) {
#pragma omp parallel for if (s * t * c > PARALLEL_MIN)
  for (size_t i = 0; i < s * t; i++) {
    const smoe_real *place = position ? position + (i % t) * c : NULL;
    if (token[i] >= 0 && place)
      row_embed(x + i * c, table + (size_t)token[i] * c, place, scale, c);
    else if (token[i] >= 0)
      row_scale(x + i * c, table + (size_t)token[i] * c, scale, c);
    else if (place)
      memcpy(x + i * c, place, c * sizeof *x);
    else
      memset(x + i * c, 0, c * sizeof *x);
  }
}

static void row_add(smoe_real *restrict y, smoe_real scale, const smoe_real *restrict x, size_t c) {
  for (size_t j = 0; j < c; j++) y[j] += scale * x[j];
}

void smoe_embedding_backward(smoe_real *dtable, smoe_real *dposition, const smoe_real *dx,
                             const int32_t *token, smoe_real scale, size_t s, size_t t, size_t c) {
  /* A token stands in many places: rows are added in token order, and threads take columns. */
#pragma omp parallel for if (s * t * c > PARALLEL_MIN)
  for (size_t j = 0; j < c; j += EMBEDDING_COLUMNS) {
    const size_t width = c - j < EMBEDDING_COLUMNS ? c - j : EMBEDDING_COLUMNS;
    for (size_t i = 0; i < s * t; i++) {
      if (dtable && token[i] >= 0) row_add(dtable + (size_t)token[i] * c + j, scale, dx + i * c + j, width);
      if (dposition) row_add(dposition + (i % t) * c + j, 1, dx + i * c + j, width);
    }
  }
}
