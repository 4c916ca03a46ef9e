/* Figures of sublayers behind gates. */
#include <stdio.h>
#include <string.h>

#include "stablemoe/log.h"
#include "stablemoe/model.h"
#include "stablemoe/skip.h"

int smoe_model_n_skip(const smoe_model *model) {
  int n = 0;
  for (int i = 0; i < model->n_layers; i++) n += model->layer[i].spec.skip != SMOE_SKIP_NOTHING;
  return n;
}

/* The k-th layer behind a gate. */
static const smoe_layer *gated(const smoe_model *model, int k) {
  int i = 0;
  while (!model->layer[i].spec.skip || k-- > 0) i++;
  return &model->layer[i];
}

const char *smoe_model_skip_name(const smoe_model *model, int k) {
  return gated(model, k)->spec.name;
}

void smoe_model_skip_shares(const smoe_model *model, double *share) {
  const int n = smoe_model_n_skip(model);
  if (n == 0) return;
  uint64_t *sum = smoe_alloc((size_t)n * 2 * sizeof *sum);
  for (int k = 0; k < n; k++) memcpy(sum + 2 * k, smoe_skip_seen(gated(model, k)), 2 * sizeof *sum);
  smoe_group_sum_u64(&model->params.group, sum, 2 * n);
  for (int k = 0; k < n; k++) share[k] = sum[2 * k] ? (double)sum[2 * k + 1] / (double)sum[2 * k] : 0;
  smoe_free(sum);
}

double smoe_model_skip_loss(const smoe_model *model) {
  double sum = 0;
  for (int k = 0; k < smoe_model_n_skip(model); k++) sum += smoe_skip_loss(gated(model, k));
  return sum;
}

void smoe_model_note_skips(const smoe_model *model) {
  const int n = smoe_model_n_skip(model);
  if (n == 0) return;
  double *share = smoe_alloc((size_t)n * sizeof *share), sum = 0;
  smoe_model_skip_shares(model, share);
  char text[1024] = "";
  for (int k = 0; k < n; k++) {
    const size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, "%s%s %.3f", k ? ", " : "", smoe_model_skip_name(model, k),
             share[k]);
    sum += share[k];
  }
  smoe_note("share of rows that ran behind the gates: %.3f (%s)", sum / n, text);
  smoe_free(share);
}
