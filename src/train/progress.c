#include "stablemoe/progress.h"

#include <math.h>
#include <string.h>

#include "stablemoe/log.h"
#include "stablemoe/timer.h"

void smoe_progress_begin(smoe_progress *progress, const smoe_model *model, const smoe_settings *settings,
                         int64_t start) {
  const size_t n = (size_t)model->n_moe * SMOE_COLLAPSES;
  *progress = (smoe_progress){.settings = settings, .model = model, .start = start, .began = smoe_seconds()};
  progress->lasting = smoe_alloc(n * sizeof *progress->lasting);
  for (size_t i = 0; i < n; i++) progress->lasting[i] = 0;
}

void smoe_progress_end(smoe_progress *progress) {
  smoe_free(progress->lasting);
  *progress = (smoe_progress){0};
}

/* ---- collapse ---- */

bool smoe_collapsed(smoe_collapse kind, const smoe_routing_load *layer, int n_experts) {
  if (kind == SMOE_COLLAPSE_GATE) return layer->gate_mean < 0.02; /* NaN: no gates to speak of */
  if (kind == SMOE_COLLAPSE_DROP) return 2 * layer->n_dropped > layer->n_assigned;
  return n_experts >= 4 && smoe_balance_of(layer->load, n_experts).entropy < 0.5;
}

static const char *const advice[SMOE_COLLAPSES] = {
    [SMOE_COLLAPSE_LOAD] = "nearly all tokens go to few of the experts; a larger balance weight, a smaller "
                           "optimizer.lr or a longer schedule.warmup may help",
    [SMOE_COLLAPSE_GATE] =
        "the gates are nearly shut, so the experts hardly count; a smaller optimizer.lr or "
        "a longer schedule.warmup may help",
    [SMOE_COLLAPSE_DROP] =
        "more than half of the tokens are dropped; a larger moe.capacity_factor or balance "
        "weight may help",
};

static void watch_routing(smoe_progress *progress, int64_t done, const smoe_step_result *result) {
  for (int m = 0; m < progress->model->n_moe; m++) {
    for (int kind = 0; kind < SMOE_COLLAPSES; kind++) {
      int *lasting = &progress->lasting[m * SMOE_COLLAPSES + kind];
      const smoe_router *router = &progress->model->moe[m]->router;
      const bool designed = (kind == SMOE_COLLAPSE_LOAD && router->draws_alike) ||
                            (kind == SMOE_COLLAPSE_GATE && router->shut_in_stage1 && result->stage == 1);
      if (designed ||
          !smoe_collapsed((smoe_collapse)kind, &result->layer[m], progress->model->params.n_experts)) {
        *lasting = 0;
      } else if (*lasting >= 0 && ++*lasting == SMOE_COLLAPSE_UPDATES) {
        smoe_warn("update %lld: routing of MoE layer %d has collapsed for %d updates: %s", (long long)done, m,
                  SMOE_COLLAPSE_UPDATES, advice[kind]);
        *lasting = -1;
      }
    }
  }
}

/* ---- the line ---- */

void smoe_progress_duration(char *out, size_t bytes, double seconds) {
  const long s = (long)seconds;
  if (s >= 3600)
    snprintf(out, bytes, "%ldh%02ldm", s / 3600, s / 60 % 60);
  else
    snprintf(out, bytes, "%ldm%02lds", s / 60, s % 60);
}

/* ", max/mean load 1.31 (cv 0.20, entropy 0.98, 0 idle), dropped 1.2 %, gate 0.61" */
static void format_routing(const smoe_progress *progress, const smoe_step_result *result, char *out,
                           size_t bytes) {
  const smoe_routing_load *worst = NULL;
  smoe_balance of_worst = {0};
  for (int m = 0; m < progress->model->n_moe; m++) {
    const smoe_balance balance = smoe_balance_of(result->layer[m].load, progress->model->params.n_experts);
    if (worst && !(balance.max_over_mean > of_worst.max_over_mean)) continue;
    worst = &result->layer[m];
    of_worst = balance;
  }
  *out = '\0';
  if (!worst) return;
  int n = 0;
  const smoe_terms *terms = &progress->model->terms;
  for (int i = 0; i < terms->n; i++)
    if (result->term[i] != 0)
      n += snprintf(out + n, bytes - (size_t)n, ", %s %.3f", terms->name[i], result->term[i]);
  n += snprintf(out + n, bytes - (size_t)n, ", max/mean load %.2f (cv %.2f, entropy %.2f, %.0f idle)",
                of_worst.max_over_mean, of_worst.cv, of_worst.entropy, of_worst.dead);
  if (worst->n_dropped > 0)
    n += snprintf(out + n, bytes - (size_t)n, ", dropped %.1f %%",
                  100.0 * (double)worst->n_dropped / (double)worst->n_assigned);
  if (isfinite(worst->gate_mean)) n += snprintf(out + n, bytes - (size_t)n, ", gate %.2f", worst->gate_mean);
  if (progress->settings->moe.nodes > 1 && isfinite(worst->local_rate))
    snprintf(out + n, bytes - (size_t)n, ", %.0f %% on their node", 100 * worst->local_rate);
}

void smoe_progress_report(smoe_progress *progress, int64_t done, const smoe_step_result *result,
                          double seconds) {
  const int64_t total = progress->settings->train.updates, every = progress->settings->run.log_every;
  const double each = (smoe_seconds() - progress->began) / (double)(done - progress->start);
  char left[32], text[768], routing[384], accuracy[32] = "";
  smoe_progress_duration(left, sizeof left, each * (double)(total - done));
  format_routing(progress, result, routing, sizeof routing);
  if (isfinite(result->accuracy))
    snprintf(accuracy, sizeof accuracy, ", accuracy %.1f %%", 100 * result->accuracy);
  snprintf(text, sizeof text,
           "update %lld/%lld, stage %d: loss %.4f%s%s, norm %.3f, lr %.2e, %.0f %s/s, %s left",
           (long long)done, (long long)total, result->stage, result->loss, accuracy, routing,
           result->norm.all, result->lr, result->n_targets / seconds, *accuracy ? "images" : "tokens", left);
  if (done % every == 0 || done == total)
    smoe_note("%s", text);
  else
    smoe_live("%s", text);
  watch_routing(progress, done, result);
}
