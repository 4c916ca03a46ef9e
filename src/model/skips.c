/* Figures of sublayers behind gates. */
#include <stdio.h>
#include <string.h>

#include "stablemoe/log.h"
#include "stablemoe/model.h"
#include "stablemoe/skip.h"

void smoe_model_skip_shares(const smoe_model *model, double *share) {
  const int n = smoe_model_n_skip(model);
  if (n == 0) return;
  uint64_t *sum = smoe_alloc((size_t)n * 2 * sizeof *sum);
  for (int k = 0; k < n; k++)
    memcpy(sum + 2 * k, smoe_skip_seen(smoe_model_skip_layer(model, k)), 2 * sizeof *sum);
  smoe_group_sum_u64(&model->params.group, sum, 2 * n);
  for (int k = 0; k < n; k++) share[k] = sum[2 * k] ? (double)sum[2 * k + 1] / (double)sum[2 * k] : 0;
  smoe_free(sum);
}

double smoe_model_skip_loss(const smoe_model *model) {
  double sum = 0;
  for (int k = 0; k < smoe_model_n_skip(model); k++) sum += smoe_skip_loss(smoe_model_skip_layer(model, k));
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
    snprintf(text + used, sizeof text - used, "%s%s %.3f", k ? ", " : "",
             smoe_model_skip_layer(model, k)->spec.name, share[k]);
    sum += share[k];
  }
  smoe_note("share of rows that ran behind the gates: %.3f (%s)", sum / n, text);
  smoe_free(share);
}
