/** The routing log: which experts the tokens went to, and which sublayers they skipped, written in parallel.
 *
 *  One file per stretch between two checkpoints, <directory>/step-<update>.h5,
 *  complete or absent. Layout (doc/file-formats.md):
 *    /layer [M], /expert [E], /slot [K]   numbers from 0 on, names of those dimensions
 *    /step [S], /stage [S]    update of each row of /load (1-based: updates done)
 *    /load [S, M, E]          tokens per expert over the global batch, before dropping
 *    /assigned [S, M]         rows before dropping
 *    /dropped [S, M]          rows beyond capacity
 *    /balance [S, M], /distill [S, M], /agreement [S, M], /gate_mean [S, M]
 *    /<name> [S, M]           each further loss term of the method
 *    /probe/token [P]         token ids of a fixed stretch of the validation split
 *    /probe/side [P], /probe/language [P]   translation: 0 source, 1 target; index into the attribute `languages`
 *    /probe/step [Q], /probe/stage [Q]
 *    /probe/expert [Q, M, P]  the choice that training uses then
 *    /probe/learned [Q, M, P], /probe/distilled [Q, M, P]   both choices; -1 where a method has none
 *    /tokens/step [Z], /tokens/place [N], /tokens/id [Z, N]
 *    /tokens/expert [Z, M, N, K], /tokens/gate [Z, M, N, K]
 *  and of sublayers behind gates (skip.h), whose names are the attribute `gates`:
 *    /gate [G], /ran [S, G], /probe/ran [Q, G, P], /tokens/ran [Z, G, N]
 *  Dimension scales, units and long names are attached. What has no rows is absent.
 */
#ifndef STABLEMOE_ROUTING_LOG_H
#define STABLEMOE_ROUTING_LOG_H

#include "stablemoe/group.h"
#include "stablemoe/real.h"
#include "stablemoe/status.h"
#include "stablemoe/terms.h"

enum { SMOE_ROUTING_FORMAT = 1 };

/** Sizes of a run's log, the same on all ranks but for *_first and *_local. */
typedef struct smoe_routing_shape {
  int n_layers;        /**< M; 0: a dense model with gates */
  int n_experts;       /**< E */
  int n_slots;         /**< K */
  int64_t n_probe;     /**< P probe tokens over all ranks; 0: no probe */
  int64_t probe_first; /**< first probe token of this rank */
  int64_t n_probe_local;
  int64_t n_tokens;        /**< N tokens of an update over all ranks */
  const char *method;      /**< router.method */
  const char *languages;   /**< translation: codes of its languages, a blank between; NULL: one side alone */
  const char *layer_sides; /**< translation: "source" or "target" of each MoE layer, a blank between; NULL */
  smoe_terms terms;        /**< loss terms: smoe_terms_common, then the method's further ones */
  int n_gates;             /**< G sublayers behind gates */
  const char *gates;       /**< their names, a blank between; NULL where G is 0 */
} smoe_routing_shape;

/** Figures of one update and MoE layer, the same on all ranks. */
typedef struct smoe_routing_load {
  const int64_t *load; /**< [E] */
  int64_t n_assigned;  /**< rows before dropping */
  int64_t n_dropped;
  double term[SMOE_TERMS]; /**< loss terms per token, as shape.terms names them */
  double agreement;  /**< share of tokens for which learned and distilled choice agree; NaN where none */
  double local_rate; /**< share of the rows sent that stay on their node; NaN where none is sent */
  double gate_mean;
  int64_t n_skipped; /**< rows not computed for their small gate (moe.skip_below) */
} smoe_routing_load;

typedef struct smoe_routing_log smoe_routing_log;

/** An empty log, held in memory until it is written. Local. */
smoe_routing_log *smoe_routing_log_create(const smoe_group *group, const smoe_routing_shape *shape);

/** Give it back. Local. */
void smoe_routing_log_destroy(smoe_routing_log *log);

/** Add one row of loads, layers [M], and of the shares of rows that ran behind the gates, ran [G]. Logically
 *  collective.
 */
void smoe_routing_log_load(smoe_routing_log *log, int64_t step, int stage, const smoe_routing_load *layers,
                           const double *ran);

/** Set the token ids of this rank's probe tokens: [n_probe_local]. Local. */
void smoe_routing_log_probe_tokens(smoe_routing_log *log, const int32_t *tokens);

/** Set the side and the language of this rank's probe tokens: [n_probe_local] each; shape.languages is given. Rank 0
 *  has all of the probe then. Local.
 */
void smoe_routing_log_probe_sides(smoe_routing_log *log, const int32_t *side, const int32_t *language);

/** Add one probe: each [M, n_probe_local]; -1 where there is no such choice. Logically collective. */
void smoe_routing_log_probe(smoe_routing_log *log, int64_t step, int stage, const int32_t *expert,
                            const int32_t *learned, const int32_t *distilled);

/** Add to the probe that was added last whether its tokens ran behind the gates: [G, n_probe_local]; 1, 0, or -1 for
 *  padding. Logically collective; always where G is not 0.
 */
void smoe_routing_log_probe_ran(smoe_routing_log *log, const int32_t *ran);

/** Begin a record of all tokens of an update. Logically collective. */
void smoe_routing_log_tokens(smoe_routing_log *log, int64_t step);

/** Add n tokens of this rank to the record that was begun: one MoE layer of one micro-batch.
 *
 *  Local.
 *  first   in  global index of the first token within the update's batch (sequence place * T)
 *  id      in  [n]
 *  expert  in  [n, K]; -1 unused, -2 - e dropped by capacity
 *  gate    in  [n, K]
 */
void smoe_routing_log_tokens_add(smoe_routing_log *log, int layer, int64_t first, size_t n, const int32_t *id,
                                 const int32_t *expert, const smoe_real *gate);

/** The same of one gate: ran [n], 1 or 0. Local. */
void smoe_routing_log_tokens_ran(smoe_routing_log *log, int gate, int64_t first, size_t n, const int32_t *id,
                                 const int32_t *ran);

/** Write everything held to <directory>/step-<update>.h5 and forget it.
 *
 *  Collective. Part file, independent transfers, read-back, rename, as checkpoints.
 *  Where nothing is held, no file is made.
 *
 *  Errors:  agreed on all ranks; nothing is left under the final name.
 */
smoe_status smoe_routing_log_write(smoe_routing_log *log, const char *directory, int64_t update);

/** Print what a routing log holds. Local (serial). */
smoe_status smoe_routing_log_print(const char *path);

/** Delete the files of updates later than `update` (they will be made again). Collective; rank 0 deletes. */
smoe_status smoe_routing_log_rewind(const smoe_group *group, const char *directory, int64_t update);

#endif
