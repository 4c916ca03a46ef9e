/** What `stablemoe evaluate` says. */
#ifndef STABLEMOE_APP_EVALUATE_PRINT_H
#define STABLEMOE_APP_EVALUATE_PRINT_H

#include <stdio.h>

#include "stablemoe/breakdown.h"

typedef struct smoe_evaluation_report {
  const char *split;
  int64_t update;
  int stage;
  double bits_per_byte; /**< NAN where the corpus does not tell its bytes */
  const smoe_evaluation *result;
  const smoe_breakdown *breakdown;
  bool experts;     /**< tables of all experts; text only */
  char **beginning; /**< [breakdown->n_worst] of the worst documents, in a line each; NULL: unknown */
} smoe_evaluation_report;

/** Print it as tables for people. Local. */
void smoe_evaluation_print_text(FILE *out, const smoe_evaluation_report *report);

/** Print it as one JSON object, with everything. Local. */
void smoe_evaluation_print_json(FILE *out, const smoe_evaluation_report *report);

#endif
