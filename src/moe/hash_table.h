/** Fixed tables of Hash layers (Roller et al. 2021): an expert for every token id.
 *
 *  Tables hold experts' numbers as reals, because they are stored as parameters; E is
 *  at most 65536, which every real type holds exactly. All functions are Local and
 *  give the same table on every rank: their sums have a fixed order, and random numbers are
 *  functions of (seed, stream, index).
 */
#ifndef STABLEMOE_MOE_HASH_TABLE_H
#define STABLEMOE_MOE_HASH_TABLE_H

#include "stablemoe/real.h"

/** table [n]: each entry an expert drawn uniformly. */
void smoe_hash_random(smoe_real *table, size_t n, int n_experts, uint64_t seed, uint32_t stream);

/** table [V]: from the most frequent token down, each to the expert that carries least so far (the lower
 *  one on ties); tokens that never occur are drawn uniformly.
 *
 *  count  in  [V] occurrences in the training data
 */
void smoe_hash_balanced(smoe_real *table, const int64_t *count, size_t v, int n_experts, uint64_t seed,
                        uint32_t stream);

/** table [V]: the cluster of each token's embedding among E, by k-means: tokens alike share an expert.
 *
 *  embedding  in  [V, C]
 */
void smoe_hash_clustered(smoe_real *table, const smoe_real *embedding, size_t v, size_t c, int n_experts,
                         uint64_t seed, uint32_t stream);

/** table [V]: the same clusters, but the tokens of each are spread evenly over the experts: tokens alike
 *  have different experts. Among the experts with fewest tokens of the cluster, the one that carries
 *  least takes the next, most frequent tokens first.
 */
void smoe_hash_dispersed(smoe_real *table, const int64_t *count, const smoe_real *embedding, size_t v,
                         size_t c, int n_experts, uint64_t seed, uint32_t stream);

/** Expert of a pair of tokens, uniform over all pairs. */
int32_t smoe_hash_pair(int32_t first, int32_t second, int vocabulary, int n_experts, uint64_t seed,
                       uint32_t stream);

#endif
