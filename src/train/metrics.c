#include "stablemoe/metrics.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "metrics_adopt.h"
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

static void write_header(const smoe_metrics *metrics, FILE *out) {
  fputs("update,stage,tokens,loss,balance,distill,lr,grad_norm,grad_norm_shared,grad_norm_expert,clip,"
        "valid_loss,valid_perplexity",
        out);
  for (int m = 0; m < metrics->n_layers; m++)
    fprintf(out,
            ",moe%d_max_over_mean,moe%d_cv,moe%d_entropy,moe%d_dead,moe%d_drop_rate,moe%d_gate_mean,"
            "moe%d_agreement",
            m, m, m, m, m, m, m);
  for (int m = 0; m < metrics->n_layers && metrics->skips_slots; m++) fprintf(out, ",moe%d_skip_rate", m);
  for (int i = 2; i < metrics->terms.n; i++) fprintf(out, ",%s", metrics->terms.name[i]);
  for (int l = 0; l < metrics->n_layers && metrics->nodes; l++) fprintf(out, ",moe%d_local_rate", l);
  const int n_skip = smoe_model_n_skip(metrics->model);
  for (int k = 0; k < n_skip; k++) {
    fputc(',', out);
    for (const char *name = smoe_model_skip_layer(metrics->model, k)->spec.name; *name; name++)
      fputc(*name == '/' ? '_' : *name, out);
    fputs("_run", out);
  }
  if (n_skip > 0) fputs(",skip_loss", out);
  if (metrics->accuracy) fputs(",accuracy,valid_accuracy", out);
  if (metrics->bleu) fputs(",valid_bleu", out);
  /* Times come last: what stands before them is the same on any number of ranks. */
  fputs(",seconds,tokens_per_s", out);
  for (int p = 0; p < SMOE_PHASES; p++) fprintf(out, ",time_%s", smoe_phase_name((smoe_phase_kind)p));
  fputc('\n', out);
}

/* The header as text, in memory of the C library. */
static char *header_text(const smoe_metrics *metrics) {
  char *text = NULL;
  size_t bytes = 0;
  FILE *out = open_memstream(&text, &bytes);
  if (!out) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory for a header");
  write_header(metrics, out);
  if (fclose(out) != 0) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory for a header");
  return text;
}

static smoe_status open_file(smoe_metrics *metrics, const char *path, const char *header, int64_t update) {
  bool kept = false;
  if (update > 0) SMOE_TRY(smoe_metrics_adopt(path, header, update, &kept));
  metrics->file = fopen(path, kept ? "a" : "w");
  SMOE_CHECK(metrics->file, SMOE_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  if (!kept) fputs(header, metrics->file);
  return SMOE_OK;
}

smoe_status smoe_metrics_open(smoe_metrics *metrics, const char *directory, const smoe_model *model,
                              int64_t update) {
  *metrics =
      (smoe_metrics){.n_layers = model->n_moe,
                     .n_experts = model->params.n_experts,
                     .terms = model->terms,
                     .nodes = model->config && smoe_config_settings(model->config)->moe.nodes > 1,
                     .model = model,
                     .accuracy = model->objective->counts,
                     .bleu = model->config &&
                             smoe_config_settings(model->config)->train.patience_metric == SMOE_PATIENCE_BLEU,
                     .skips_slots = model->moe && model->n_moe > 0 && model->moe[0]->skip_below > 0};
  if (model->params.group.rank != 0) return SMOE_OK;
  char *path = smoe_sprintf("%s/metrics.csv", directory), *header = header_text(metrics);
  const smoe_status status = open_file(metrics, path, header, update);
  free(header); /* memory of the C library */
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
  for (int i = 0; i < 2; i++) field(file, result->term[i]); /* balance, distill */
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
  for (int m = 0; m < metrics->n_layers && metrics->skips_slots; m++) {
    const double chosen = (double)(result->layer[m].n_assigned + result->layer[m].n_skipped);
    field(file, chosen > 0 ? (double)result->layer[m].n_skipped / chosen : 0);
  }
  for (int i = 2; i < metrics->terms.n; i++) field(file, result->term[i]);
  for (int l = 0; l < metrics->n_layers && metrics->nodes; l++) field(file, result->layer[l].local_rate);
  const int n_skip = smoe_model_n_skip(metrics->model);
  for (int k = 0; k < n_skip; k++) field(file, result->skip[k]);
  if (n_skip > 0) field(file, result->skip_loss);
  if (metrics->accuracy) {
    field(file, result->accuracy);
    field(file, valid ? valid->accuracy : NAN);
  }
  if (metrics->bleu) field(file, valid ? valid->bleu : NAN);
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
