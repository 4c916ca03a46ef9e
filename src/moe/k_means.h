/** Clusters of rows by k-means, deterministic. */
#ifndef STABLEMOE_MOE_K_MEANS_H
#define STABLEMOE_MOE_K_MEANS_H

#include "stablemoe/real.h"

/** Rounds at most; they end earlier where no row changes its cluster. */
enum { SMOE_K_MEANS_ROUNDS = 50 };

/** Lloyd's algorithm from k-means++ starts.
 *
 *  Local. The same bits on any number of threads: each row is a task of its own, and means are
 *  summed in double in the order of rows.
 *
 *  cluster  out  [N] in 0 .. k - 1: the nearest mean, the lower one on ties
 *  x        in   [N, C]
 *
 *  A cluster may stay empty where fewer rows differ than there are clusters.
 */
void smoe_k_means(int32_t *cluster, const smoe_real *x, size_t n, size_t c, int k, uint64_t seed,
                  uint32_t stream);

#endif
