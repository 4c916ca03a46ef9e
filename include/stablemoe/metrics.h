/** metrics.csv: one line per update, for people and programs. Rank 0 writes. */
#ifndef STABLEMOE_METRICS_H
#define STABLEMOE_METRICS_H

#include <stdio.h>

#include "stablemoe/evaluate.h"

typedef struct smoe_metrics {
  FILE *file; /**< NULL on ranks other than 0 */
  int n_layers;
  int n_experts;
  bool accuracy; /**< there are columns of it */
  bool bleu;     /**< there is a column of it */
  smoe_terms terms;
  bool nodes; /**< the share of rows that stay on their node has columns */
  const smoe_model *model;
  bool skips_slots; /**< moe.skip_below is on */
} smoe_metrics;

/** Balance of one MoE layer's loads over the global batch. */
typedef struct smoe_balance {
  double max_over_mean;
  double cv;      /**< coefficient of variation: standard deviation over mean */
  double entropy; /**< of the load shares, over log E: 1 is even */
  double dead;    /**< experts without a token */
} smoe_balance;

/** Figures of loads [E]. Local. NaN where there is no token at all. */
smoe_balance smoe_balance_of(const int64_t *load, int n_experts);

/** Open <directory>/metrics.csv: new with its header, or after a resume with every line
 *  beyond `update` cut off, so that no update stands there twice. Where another version of the
 *  program began it, with other columns, it is written anew with those of this one: what is not
 *  there is empty, and what would be lost stays beside as metrics-<n>.csv. Local (rank 0).
 */
smoe_status smoe_metrics_open(smoe_metrics *metrics, const char *directory, const smoe_model *model,
                              int64_t update);

/** Write the line of update number `update` (1-based). valid: NULL where none was due. Local.
 *  seconds of the update, and of its phases (phase.h): [SMOE_PHASES], or NULL where nobody measured them.
 *  Errors:  SMOE_ERR_IO (disk full).
 */
smoe_status smoe_metrics_write(smoe_metrics *metrics, int64_t update, int64_t n_tokens,
                               const smoe_step_result *result, const smoe_evaluation *valid, double seconds,
                               const double *phase);

/** Close the file. Local. */
void smoe_metrics_close(smoe_metrics *metrics);

#endif
