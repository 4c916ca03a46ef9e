/** Decoding: a pass over the tokens that are new, beside kept keys and values of those before them.
 *
 *  One sequence at a time. Reading a token costs what it costs alone, and the attention to those
 *  before it; so a text costs as much per token at its end as at its beginning, but for that.
 *  Experts are where training has them: a token's rows travel there, whatever rank reads it.
 */
#ifndef STABLEMOE_DECODE_H
#define STABLEMOE_DECODE_H

#include "stablemoe/model.h"

typedef struct smoe_decoder smoe_decoder;

/** Set up for an empty sequence.
 *
 *  Collective over the model's group.
 *
 *  model   in  of one lane with one sequence, not for training, and without a capacity: a token
 *              alone has no batch that it could be dropped from; borrowed
 *  cached  in  false: compute the whole context for every token; to compare with
 *
 *  Errors:  agreed; SMOE_ERR_MEMORY.
 */
smoe_status smoe_decoder_create(smoe_decoder **decoder, smoe_model *model, bool cached);

/** Give it back; NULL is fine. Local. */
void smoe_decoder_destroy(smoe_decoder *decoder);

/** Whether keys and values are kept. Local; the same on all ranks.
 *
 *  Not where a routing method looks at later tokens (SMOE_SCOPE_ALL): there a new token may change
 *  what the ones before it were sent to, and everything is computed anew for each token.
 */
bool smoe_decoder_is_cached(const smoe_decoder *decoder);

/** The rank that has the hidden states, and so the logits. Local; the same on all ranks. */
int smoe_decoder_rank(const smoe_decoder *decoder);

/** Read n >= 1 tokens at places first .. first + n - 1 of the sequence.
 *
 *  Collective. The tokens before `first` have been read earlier; what was read beyond is forgotten, so
 *  first = 0 begins anew. first + n is at most the context.
 *
 *  token   in   [n], the same on all ranks
 *  logits  out  [V] after the last of them, on smoe_decoder_rank alone
 *
 *  Order:   shapes follow from first and n, so bits are the same on any number of ranks; tokens read one by
 *           one or at once agree to rounding.
 *  Cost:    cached: O(n) products and O(n (first + n)) for attention; else that of a whole context.
 */
void smoe_decoder_read(smoe_decoder *decoder, const int32_t *token, size_t first, size_t n,
                       const smoe_pass *context, smoe_real *logits);

/** Where the window of a text of n tokens begins: its tokens from there on are what the model sees.
 *
 *  Local. 0 while the text fits. When it is full, the window moves on by half a context at once: tokens have
 *  learned positions, so after each move all that is kept is computed anew, and half a context at a time
 *  that is once in context / 2 tokens rather than for each.
 */
size_t smoe_decoder_window(size_t n, size_t context);

#endif
