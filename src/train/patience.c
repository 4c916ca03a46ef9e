#include "patience.h"

#include <math.h>
#include <stdio.h>

#include "stablemoe/log.h"

void smoe_patience_begin(smoe_patience *p, const smoe_settings *settings) {
  *p = (smoe_patience){.keeps = settings->train.best || settings->train.patience > 0,
                       .patience = settings->train.patience};
  if (p->keeps)
    p->best.metric = settings->train.patience_metric == SMOE_PATIENCE_BLEU ? SMOE_BEST_BLEU : SMOE_BEST_LOSS;
}

void smoe_patience_load(smoe_patience *p, const smoe_best *stored) {
  if (!p->keeps) return;
  if (stored->metric == p->best.metric)
    p->best = *stored;
  else if (stored->metric != SMOE_BEST_NONE)
    smoe_note("train.patience_metric is another one now: the best evaluation is looked for anew, by %s",
              smoe_patience_what(p));
}

bool smoe_patience_count(smoe_patience *p, int64_t update, double value) {
  smoe_best *best = &p->best;
  if (!p->keeps) return false;
  const double gain = best->metric == SMOE_BEST_BLEU ? value - best->value : best->value - value;
  const bool better = isfinite(value) && (best->update == 0 || gain > 0);
  best->n_since++;
  if (!better) return false;
  best->update = update;
  best->value = value;
  best->n_since = 0;
  return true;
}

bool smoe_patience_over(const smoe_patience *p) {
  return p->patience > 0 && p->best.n_since >= p->patience;
}

const char *smoe_patience_what(const smoe_patience *p) {
  return p->best.metric == SMOE_BEST_BLEU ? "validation BLEU" : "validation loss";
}

void smoe_patience_value(const smoe_patience *p, char *text, size_t bytes) {
  snprintf(text, bytes, "%.*f", p->best.metric == SMOE_BEST_BLEU ? 2 : 4, p->best.value);
}

void smoe_patience_describe(const smoe_patience *p, char *text, size_t bytes) {
  const smoe_best *best = &p->best;
  char value[32];
  smoe_patience_value(p, value, sizeof value);
  if (!p->keeps || best->update == 0)
    snprintf(text, bytes, "%s", "");
  else if (best->n_since == 0)
    snprintf(text, bytes, " (best)");
  else
    snprintf(text, bytes, " (best %s at update %lld, %lld evaluation%s ago)", value, (long long)best->update,
             (long long)best->n_since, best->n_since == 1 ? "" : "s");
}
