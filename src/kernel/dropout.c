#include "stablemoe/kernel.h"

#include "stablemoe/random.h"
#include "stablemoe/status.h"
#include "vector.h"

/* A block of Philox has 8 numbers of 16 bits. A row is cut into chunks of 128 elements, a chunk into 8 runs of 16:
 * element i of run k takes number k of block i, so that a run is one vector of the blocks' words. */
enum { RUN = SMOE_RANDOM_LANES, RUNS = 8, CHUNK = RUN * RUNS, BLOCK_BITS = 20 };

/* x [n] of a chunk, n <= CHUNK. */
static void chunk_apply(smoe_real *restrict x, uint32_t word[4][RUN], uint32_t threshold, smoe_real scale,
                        size_t n) {
  for (size_t k = 0; k * RUN < n; k++) {
    const size_t end = n - k * RUN < RUN ? n - k * RUN : RUN;
    const uint32_t *restrict bits = word[k % 4];
    const uint32_t shift = k < 4 ? 0 : 16;
    smoe_real *restrict run = x + k * RUN;
    for (size_t i = 0; i < end; i++) run[i] = (bits[i] >> shift & 0xffff) < threshold ? 0 : run[i] * scale;
  }
}

static void row_apply(smoe_real *x, uint64_t token, size_t c, uint32_t threshold, smoe_real scale,
                      const smoe_dropout *dropout) {
  for (size_t j = 0; j < c; j += CHUNK) {
    uint32_t word[4][RUN];
    smoe_random_lanes(word, dropout->seed, SMOE_RANDOM_DROPOUT, dropout->site, dropout->update,
                      token << BLOCK_BITS | j / RUNS);
    /* Of a constant length where possible: the loops over whole runs become single instructions. */
    if (c - j >= CHUNK)
      chunk_apply(x + j, word, threshold, scale, CHUNK);
    else
      chunk_apply(x + j, word, threshold, scale, c - j);
  }
}

void smoe_dropout_apply(smoe_real *x, const int64_t *token, int64_t first, size_t n, size_t c,
                        const smoe_dropout *dropout) {
  const uint32_t threshold = (uint32_t)lround(dropout->share * 65536);
  SMOE_ASSERT(dropout->share >= 0 && threshold < 65536 && c <= (size_t)RUNS << BLOCK_BITS);
  if (threshold == 0) return;
  const smoe_real scale = (smoe_real)(65536.0 / (65536 - threshold));
#pragma omp parallel for if (n * c > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) {
    const int64_t row = token ? token[i] : first + (int64_t)i;
    SMOE_ASSERT(row >= 0 && row >> (64 - BLOCK_BITS) == 0);
    row_apply(x + i * c, (uint64_t)row, c, threshold, scale, dropout);
  }
}
