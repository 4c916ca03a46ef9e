#include "stablemoe/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stablemoe/phase.h"

smoe_balance smoe_balance_of(const int64_t *load, int n_experts) {
  double sum = 0, max = 0, entropy = 0, spread = 0, dead = 0;
  for (int e = 0; e < n_experts; e++) {
    sum += (double)load[e];
    max = fmax(max, (double)load[e]);
    dead += load[e] == 0;
  }
  const double mean = sum / n_experts;
  for (int e = 0; e < n_experts; e++) {
    const double share = (double)load[e] / sum;
    if (load[e] > 0) entropy -= share * log(share);
    spread += ((double)load[e] - mean) * ((double)load[e] - mean);
  }
  return (smoe_balance){.max_over_mean = max / mean,
                        .cv = sqrt(spread / n_experts) / mean,
                        .entropy = sum == 0        ? NAN
                                   : n_experts > 1 ? entropy / log((double)n_experts)
                                                   : 1,
                        .dead = dead};
}

static void write_header(const smoe_metrics *metrics) {
  fputs("update,stage,tokens,loss,balance,distill,lr,grad_norm,grad_norm_shared,grad_norm_expert,clip,"
        "valid_loss,valid_perplexity",
        metrics->file);
  for (int m = 0; m < metrics->n_layers; m++)
    fprintf(metrics->file,
            ",moe%d_max_over_mean,moe%d_cv,moe%d_entropy,moe%d_dead,moe%d_drop_rate,moe%d_gate_mean,"
            "moe%d_agreement",
            m, m, m, m, m, m, m);
  /* Times come last: what stands before them is the same on any number of ranks. */
  fputs(",seconds,tokens_per_s", metrics->file);
  for (int p = 0; p < SMOE_PHASES; p++)
    fprintf(metrics->file, ",time_%s", smoe_phase_name((smoe_phase_kind)p));
  fputc('\n', metrics->file);
}

/* Length of the file up to the last whole line of an update <= update; -1 on error. A machine that
 * fell may leave zeros, or the end of something else: lines count as long as their updates go up.
 */
static long length_until(const char *path, int64_t update) {
  FILE *file = fopen(path, "r");
  if (!file) return errno == ENOENT ? 0 : -1;
  char *line = NULL;
  size_t capacity = 0;
  long keep = 0;
  int64_t before = 0;
  ssize_t n;
  for (bool header = true; (n = getline(&line, &capacity, file)) > 0; header = false) {
    if (line[n - 1] != '\n' || memchr(line, '\0', (size_t)n)) break;
    const int64_t number = strtoll(line, NULL, 10);
    const bool fits = header ? strncmp(line, "update,", 7) == 0 : number > before && number <= update;
    if (!fits) break;
    before = number;
    keep += n;
  }
  smoe_free(line); /* of getline */ /* memory of the C library */
  fclose(file);
  return keep;
}

smoe_status smoe_metrics_open(smoe_metrics *metrics, const char *directory, const smoe_model *model,
                              int64_t update) {
  *metrics = (smoe_metrics){.n_layers = model->n_moe, .n_experts = model->params.n_experts};
  if (model->params.group.rank != 0) return SMOE_OK;
  char *path = smoe_sprintf("%s/metrics.csv", directory);
  const long keep = update > 0 ? length_until(path, update) : 0;
  smoe_status status = SMOE_OK;
  if (keep < 0 || (keep > 0 && truncate(path, keep) != 0) ||
      !(metrics->file = fopen(path, keep > 0 ? "a" : "w")))
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  else if (keep == 0)
    write_header(metrics);
  smoe_free(path);
  return status;
}

/* A number with as many digits as tell it apart, or an empty field. */
static void field(FILE *file, double value) {
  fputc(',', file);
  if (isfinite(value)) fprintf(file, "%.10g", value);
}

smoe_status smoe_metrics_write(smoe_metrics *metrics, int64_t update, int64_t n_tokens,
                               const smoe_step_result *result, const smoe_evaluation *valid, double seconds,
                               const double *phase) {
  FILE *file = metrics->file;
  if (!file) return SMOE_OK;
  fprintf(file, "%lld,%d,%lld", (long long)update, result->stage, (long long)n_tokens);
  fprintf(file, ",%.17g", result->loss);
  field(file, result->balance);
  field(file, result->distill);
  field(file, result->lr);
  field(file, result->norm.all);
  field(file, result->norm.shared);
  field(file, result->norm.expert);
  field(file, result->clip);
  field(file, valid ? valid->loss : NAN);
  field(file, valid ? valid->perplexity : NAN);
  for (int m = 0; m < metrics->n_layers; m++) {
    const smoe_routing_load *layer = &result->layer[m];
    const smoe_balance balance = smoe_balance_of(layer->load, metrics->n_experts);
    field(file, balance.max_over_mean);
    field(file, balance.cv);
    field(file, balance.entropy);
    field(file, balance.dead);
    field(file, layer->n_assigned ? (double)layer->n_dropped / (double)layer->n_assigned : 0);
    field(file, layer->gate_mean);
    field(file, layer->agreement);
  }
  fprintf(file, ",%.4f,%.1f", seconds, result->n_targets / seconds);
  for (int p = 0; p < SMOE_PHASES; p++) fprintf(file, phase ? ",%.6f" : ",", phase ? phase[p] : 0);
  fputc('\n', file);
  SMOE_CHECK(fflush(file) == 0, SMOE_ERR_IO, "cannot write metrics.csv: %s", strerror(errno));
  return SMOE_OK;
}

void smoe_metrics_close(smoe_metrics *metrics) {
  if (metrics->file) fclose(metrics->file);
  metrics->file = NULL;
}
