/* What is learned of logits. */
#include <math.h>

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

/* Rows whose gradients of the divergence are held at a time. */
enum { BLOCK = 32 };

/* One copy's part of a block by its own objective; sums are means over the copies. */
static void each_rows(const smoe_objective *self, const smoe_objective_call *call, int copy, size_t first,
                      size_t rows) {
  const smoe_objective *each = self->each;
  double sums[4] = {0};
  SMOE_ASSERT(each->n_sums <= 4);
  smoe_objective_call one = *call;
  const size_t at = (size_t)copy * call->rows + first;
  one.logits = call->logits + at * call->vocabulary;
  one.loss = call->loss + at;
  one.target = call->target + first;
  one.rows = rows;
  one.copies = 1;
  one.sums = sums;
  each->rows(each, &one);
  for (int i = 0; i < each->n_sums; i++) call->sums[1 + i] += sums[i] / call->copies;
}

static void consistent_rows(const smoe_objective *self, const smoe_objective_call *call) {
  const size_t v = call->vocabulary;
  if (call->copies == 1) {
    each_rows(self, call, 0, 0, call->rows);
    return;
  }
  SMOE_ASSERT(call->copies == 2 && call->gradient);
  smoe_real *d = smoe_alloc(2 * BLOCK * v * sizeof *d), loss[BLOCK];
  smoe_real *x = call->logits, *y = x + call->rows * v;
  for (size_t first = 0; first < call->rows; first += BLOCK) {
    const size_t rows = call->rows - first < BLOCK ? call->rows - first : BLOCK, at = first * v;
    smoe_consistency(loss, d, d + rows * v, x + at, y + at, call->target + first,
                     (smoe_real)self->consistency * call->scale, rows, v);
    for (size_t r = 0; r < rows; r++) call->sums[0] += self->consistency * (double)loss[r];
    for (int copy = 0; copy < 2; copy++) each_rows(self, call, copy, first, rows);
    for (size_t i = 0; i < rows * v; i++) {
      x[at + i] += d[i];
      y[at + i] += d[rows * v + i];
    }
  }
  smoe_free(d);
}

static const char *const consistent_names[] = {"consistency", "nll"};

smoe_objective smoe_objective_consistent(const smoe_objective *each, double weight) {
  return (smoe_objective){.rows = consistent_rows,
                          .n_sums = 1 + each->n_sums,
                          .sum_names = consistent_names,
                          .each = each,
                          .consistency = weight};
}

/* The one logit is for class 1. */
static void logistic_rows(const smoe_objective_call *call) {
  for (size_t r = 0; r < call->rows; r++) {
    const double f = (double)call->logits[r], sign = call->target[r] == 1 ? 1 : -1;
    const bool real = call->target[r] >= 0;
    call->loss[r] = real ? (smoe_real)(fmax(-sign * f, 0) + log1p(exp(-fabs(f)))) : 0;
    if (call->gradient)
      call->logits[r] = real ? (smoe_real)(-sign / (1 + exp(sign * f)) * (double)call->scale) : 0;
  }
}

static int32_t likeliest(const smoe_real *logits, size_t v) {
  if (v == 1) return logits[0] > 0;
  int32_t best = 0;
  for (size_t c = 1; c < v; c++)
    if (logits[c] > logits[best]) best = (int32_t)c;
  return best;
}

static void classes_rows(const smoe_objective *self, const smoe_objective_call *call) {
  const size_t v = call->vocabulary;
  for (size_t r = 0; r < call->rows; r++) {
    const int32_t class = likeliest(call->logits + r * v, v);
    if (call->predicted) call->predicted[r] = class;
    call->sums[0] += class == call->target[r];
  }
  if (v == 1)
    logistic_rows(call);
  else
    cross_entropy(self, call);
}

static const char *const class_sums[] = {"correct"};

const smoe_objective smoe_objective_classes = {
    .rows = classes_rows, .n_sums = 1, .sum_names = class_sums, .counts = true};
