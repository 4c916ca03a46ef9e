/** Balanced assignment of tokens to experts by an auction.
 *
 *  Maximises the total score where every expert takes floor(N / E) or ceil(N / E) of the N
 *  tokens: those that most tokens want take the one more, the lower expert on ties. The block
 *  auction of BASE layers (Lewis et al. 2021). Where scores are full of ties it loses more than the
 *  2 % or less that it is from the optimum otherwise (doc/methods/base.md).
 */
#ifndef STABLEMOE_MOE_AUCTION_H
#define STABLEMOE_MOE_AUCTION_H

#include "stablemoe/real.h"

/** Rounds after which the auction of a router is cut off. */
enum { SMOE_AUCTION_ROUNDS = 500 };

/** Assign.
 *
 *  Local. The result follows from scores and tokens alone, on any number of threads.
 *
 *  expert   out  [N]; -1 for padding
 *  score    in   [N, E]; one that is not finite counts as the least that is
 *  token    in   [N]; -1: padding, which no expert takes. NULL: no padding
 *  rounds   in   after so many the auction is cut off, and each token that is not sold goes to its best
 *                expert that has room, in token order
 *  scratch       smoe_auction_scratch(n, n_experts) reals
 *
 *  Returns the number of rounds played.
 *  Cost:    a selection of N numbers per expert and round; about 10 rounds.
 *  Source:  Lewis et al. 2021, section 3.2; Bertsekas 1992 (auction algorithm).
 */
int smoe_auction(int32_t *expert, const smoe_real *score, const int32_t *token, size_t n, int n_experts,
                 int rounds, smoe_real *scratch);

/** Reals of scratch for as many threads as are set now. Local. */
size_t smoe_auction_scratch(size_t n, int n_experts);

#endif
