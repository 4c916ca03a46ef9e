/** Reading the record of all tokens in a run's routing logs (/tokens), update by update. */
#ifndef STABLEMOE_ROUTING_READER_H
#define STABLEMOE_ROUTING_READER_H

#include "stablemoe/routing_log.h"

typedef struct smoe_routing_reader smoe_routing_reader;

/** Find the records of a run.
 *
 *  Collective over group: rank 0 reads.
 *  path      in  a run directory, a directory of routing logs, or one routing log
 *  shape     in  what the records must fit: n_layers, n_experts, n_slots, n_tokens
 *
 *  Errors:  agreed; SMOE_ERR_IO where there is nothing to read, SMOE_ERR_FORMAT for damaged files,
 *           SMOE_ERR_CONFIG naming what does not fit. *reader is NULL then.
 */
smoe_status smoe_routing_reader_open(smoe_routing_reader **reader, const smoe_group *group, const char *path,
                                     const smoe_routing_shape *shape);

/** Give it back; NULL is fine. Local. */
void smoe_routing_reader_close(smoe_routing_reader *reader);

/** Check that updates 1 .. last are recorded.
 *
 *  Collective. Errors: SMOE_ERR_CONFIG, agreed, naming the first that is missing, and what there is.
 */
smoe_status smoe_routing_reader_covers(const smoe_routing_reader *reader, int64_t last);

/** Read one update's record.
 *
 *  Collective.
 *  step    in   updates done after it: 1 for the first
 *  id      out  [N] token ids by place in the batch, on every rank
 *  expert  out  [M, N, K]; -1 unused, -2 - e dropped by capacity
 *  Errors:  agreed.
 */
smoe_status smoe_routing_reader_read(smoe_routing_reader *reader, int64_t step, int32_t *id, int32_t *expert);

/** The experts that each token id has most often over all records: [M, V, K], the most frequent first, the lower
 *  one on ties; -1 where there are not so many.
 *
 *  Collective; reads everything.
 *  Errors:  agreed; SMOE_ERR_CONFIG where a record holds an id beyond the vocabulary.
 */
smoe_status smoe_routing_reader_usual(smoe_routing_reader *reader, int vocabulary, int32_t *expert);

#endif
