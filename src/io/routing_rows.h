/** The inside of a routing log: rows that grow in memory, and the columns of the file. */
#ifndef STABLEMOE_IO_ROUTING_ROWS_H
#define STABLEMOE_IO_ROUTING_ROWS_H

#include "part_file.h"
#include "stablemoe/routing_log.h"

/** Sizes that shapes are made of. */
typedef enum smoe_routing_dim {
  SMOE_DIM_STEP,         /**< S rows of loads */
  SMOE_DIM_LAYER,        /**< M */
  SMOE_DIM_EXPERT,       /**< E */
  SMOE_DIM_SLOT,         /**< K */
  SMOE_DIM_PROBE_STEP,   /**< Q probes */
  SMOE_DIM_PROBE_TOKEN,  /**< P */
  SMOE_DIM_TOKENS_STEP,  /**< Z records of all tokens */
  SMOE_DIM_TOKENS_PLACE, /**< N */
  SMOE_DIM_GATE,         /**< G */
  SMOE_DIMS
} smoe_routing_dim;

/** Datasets of the file, in the order they are made: first the scale of each dimension, in their order. */
typedef enum smoe_routing_column {
  SMOE_COL_STEP,
  SMOE_COL_LAYER,
  SMOE_COL_EXPERT,
  SMOE_COL_SLOT,
  SMOE_COL_PROBE_STEP,
  SMOE_COL_PROBE_TOKEN,
  SMOE_COL_TOKENS_STEP,
  SMOE_COL_TOKENS_PLACE,
  SMOE_COL_GATE,
  SMOE_COL_STAGE,
  SMOE_COL_LOAD,
  SMOE_COL_ASSIGNED,
  SMOE_COL_DROPPED,
  SMOE_COL_BALANCE,
  SMOE_COL_DISTILL,
  SMOE_COL_AGREEMENT,
  SMOE_COL_GATE_MEAN,
  SMOE_COL_RAN,
  SMOE_COL_PROBE_STAGE,
  SMOE_COL_PROBE_SIDE, /**< of translation alone, as the next */
  SMOE_COL_PROBE_LANGUAGE,
  SMOE_COL_PROBE_EXPERT,
  SMOE_COL_PROBE_LEARNED,
  SMOE_COL_PROBE_DISTILLED,
  SMOE_COL_PROBE_RAN,
  SMOE_COL_TOKENS_ID,
  SMOE_COL_TOKENS_EXPERT,
  SMOE_COL_TOKENS_GATE,
  SMOE_COL_TOKENS_RAN,
  SMOE_COLS /**< then a column for each loss term but the first two */
} smoe_routing_column;

enum { SMOE_COLS_MAX = SMOE_COLS + SMOE_TERMS };

/** Memory that grows. */
typedef struct smoe_rows {
  char *data;
  size_t bytes, room;
} smoe_rows;

/** Some tokens of this rank: one MoE layer, or one gate, of one micro-batch. */
typedef struct smoe_token_chunk {
  int64_t record; /**< row of /tokens */
  bool of_gate, has_id;
  int layer; /**< or number of the gate */
  int64_t first;
  int64_t n;
  size_t id,
      choice; /**< offsets, in elements, into the rows of ids, and of experts and gates, or of what ran */
} smoe_token_chunk;

struct smoe_routing_log {
  const smoe_group *group;
  smoe_routing_shape shape;
  char *method, *languages, *layer_sides; /**< the last two NULL but for translation */
  char *gates;                            /**< NULL where there are none */
  smoe_rows rows[SMOE_COLS_MAX];          /**< rank 0's columns; of probes and tokens, this rank's part */
  smoe_rows chunk;                        /**< smoe_token_chunk */
  int64_t n_steps, n_probes, n_records;
  int64_t first_step; /**< smallest update held; -1 where none is */
};

/** Columns of this log. Local. */
int smoe_routing_columns(const smoe_routing_log *log);

/** Column of a loss term. Local. */
int smoe_routing_term_column(int term);

/** Length of a dimension now. Local. */
int64_t smoe_routing_length(const smoe_routing_log *log, smoe_routing_dim dim);

/** Make the datasets and attributes, and write rank 0's columns. Local, by rank 0. */
smoe_status smoe_routing_make(const smoe_routing_log *log, const smoe_part_file *part, int64_t update);

/** Write, or compare, rank 0's columns. Local, by rank 0. */
smoe_status smoe_routing_put_columns(const smoe_routing_log *log, const smoe_part_file *part);

/** Write, or compare, this rank's parts of probes and token records. Local. */
smoe_status smoe_routing_put_parts(const smoe_routing_log *log, const smoe_part_file *part);

/** Bytes of the file, about. Local. */
int64_t smoe_routing_bytes(const smoe_routing_log *log);

#endif
