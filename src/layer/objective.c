/* What is learned of logits. */
#include "stablemoe/layer.h"

static void cross_entropy(const smoe_objective *self, const smoe_objective_call *call) {
  smoe_cross_entropy(call->loss, call->logits, call->target, 1, call->scale, call->gradient, call->rows,
                     call->vocabulary);
}

const smoe_objective smoe_objective_cross_entropy = {.rows = cross_entropy};

/* Cross entropy with label smoothing, and the plain one as a sum of its own. */
static void smoothed_rows(const smoe_objective *self, const smoe_objective_call *call) {
  smoe_real *nll = smoe_alloc(call->rows * sizeof *nll);
  smoe_cross_entropy_smoothed(call->loss, nll, call->logits, call->target, 1,
                              (smoe_real)self->label_smoothing, call->scale, call->gradient, call->rows,
                              call->vocabulary);
  for (size_t r = 0; r < call->rows; r++) {
    call->sums[0] += (double)nll[r];
    /* An evaluation is of the model, not of the objective. */
    if (!call->gradient) call->loss[r] = nll[r];
  }
  smoe_free(nll);
}

static const char *const sum_names[] = {"nll"};

smoe_objective smoe_objective_smoothed(double label_smoothing) {
  return (smoe_objective){
      .rows = smoothed_rows, .label_smoothing = label_smoothing, .n_sums = 1, .sum_names = sum_names};
}
