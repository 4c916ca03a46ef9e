/** Inside of layers behind a gate: what their source files share. All functions are Local. */
#ifndef STABLEMOE_LAYER_SKIP_PARTS_H
#define STABLEMOE_LAYER_SKIP_PARTS_H

#include "stablemoe/skip.h"

typedef struct skip {
  const smoe_skip_options *options;
  int n_inner;
  smoe_layer inner[2];
  int gamma, beta, gate; /* parameters: of the first inner layer's norm; of the gate, -1: none */
  smoe_norm_kind norm;
  size_t width;
  bool kept; /* every lane has a tape of its own */
  /* tape */
  smoe_real *mean, *rstd; /* [N] */
  smoe_real *pooled;      /* [N, C] what the gate looks at */
  smoe_real *r;           /* [N] R */
  smoe_real *delta;       /* [N, C] F(x); training */
  smoe_real *mid;         /* [N, C] between the sublayers of a block */
  /* scratch, one lane */
  bool *active;
  smoe_real *full, *rows; /* [lane tokens, C] */
  smoe_real *passed;      /* gradients of rows that skip */
  smoe_real *dpooled;
  /* as long as the model */
  int32_t *ran;    /* [N] M; 0 for padding */
  uint64_t *count; /* [lanes, 2] rows and those that ran, of the last pass */
  int n_lanes;
  /* of the micro-batch, over all ranks */
  uint64_t n_rows, n_ran;
  uint64_t seen[2];
  double loss;
  const smoe_real *base; /* see smoe_skip_straighten */
} skip;

/** Whether a sequence has one decision, or each token that of the mean so far. */
bool smoe_skip_is_whole(const skip *s);
bool smoe_skip_is_running(const skip *s);

/** Rows [n, C] of one sequence: norm(x) in, means so far out. sum [C] continues over `before` rows. */
void smoe_skip_pool_running(smoe_real *pooled, smoe_real *sum, size_t before, size_t n, size_t c);

/** All rows get the mean of the real ones. sum: scratch [C]; token NULL: all are real. */
void smoe_skip_pool_whole(smoe_real *pooled, smoe_real *sum, const int32_t *token, size_t n, size_t c);

/** M and R of rows whose pooled values are known. first: index of row 0; t: rows of a sequence. */
void smoe_skip_decide_rows(const smoe_layer *layer, const smoe_pass *pass, const smoe_real *pooled,
                           smoe_real *r, int32_t *ran, const int32_t *token, uint64_t first, size_t n,
                           size_t t);

/** y = x + F(x) of a feed-forward layer on the active rows, y = x elsewhere. */
void smoe_skip_ffn_some(skip *s, smoe_layer *inner, const smoe_layer_call *call, const bool *active);

/** Decoding. */
size_t smoe_skip_state_reals(const smoe_layer *layer, size_t n_sequences, size_t length_max, size_t side_max);
void smoe_skip_extend(smoe_layer *layer, const smoe_extend_call *call);
void smoe_skip_reorder(const smoe_layer *layer, smoe_real *state, const int32_t *from, size_t n_sequences,
                       size_t length, size_t length_max, size_t side_max);

#endif
