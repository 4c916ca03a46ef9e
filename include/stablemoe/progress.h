/** What a training run says of itself while it runs: the line of progress, and warnings. */
#ifndef STABLEMOE_PROGRESS_H
#define STABLEMOE_PROGRESS_H

#include "stablemoe/metrics.h"

/** Ways in which routing collapses. */
typedef enum smoe_collapse {
  SMOE_COLLAPSE_LOAD, /**< nearly all tokens go to few of the experts */
  SMOE_COLLAPSE_GATE, /**< the gates are nearly shut: experts hardly count */
  SMOE_COLLAPSE_DROP, /**< more than half of the tokens are dropped */
  SMOE_COLLAPSES
} smoe_collapse;

typedef struct smoe_progress {
  const smoe_settings *settings;
  const smoe_model *model;
  int64_t start; /**< updates done before this process */
  double began;  /**< seconds when its first update began */
  int *lasting;  /**< [M, SMOE_COLLAPSES] updates for which it has lasted; -1: said already */
} smoe_progress;

/** Updates that a collapse has to last before it is worth a warning. */
enum { SMOE_COLLAPSE_UPDATES = 50 };

/** Start after `start` updates. Local; give back with smoe_progress_end. */
void smoe_progress_begin(smoe_progress *progress, const smoe_model *model, const smoe_settings *settings,
                         int64_t start);

/** Give it back. Local. */
void smoe_progress_end(smoe_progress *progress);

/** Whether one layer's routing is collapsed this way at this update. Local.
 *
 *  Entropy of the loads below half of its maximum where there are at least four experts, so that they do
 *  the work of fewer than sqrt(E); gates below 0.02 on average; over half of the choices dropped.
 */
bool smoe_collapsed(smoe_collapse kind, const smoe_routing_load *layer, int n_experts);

/** Write seconds as people say them: "3m07s", "2h15m". Local. */
void smoe_progress_duration(char *out, size_t bytes, double seconds);

/** Say how update `done` went: in the log every run.log_every updates, else on a terminal's last line.
 *
 *  Local. Balance figures are those of the MoE layer with the largest max/mean load. A collapse that has
 *  lasted for SMOE_COLLAPSE_UPDATES updates is warned of once, until it has ended.
 */
void smoe_progress_report(smoe_progress *progress, int64_t done, const smoe_step_result *result,
                          double seconds);

#endif
