#include "patience.h"

#include <math.h>
#include <stdio.h>

void smoe_patience_begin(smoe_patience *p, const smoe_settings *settings) {
  *p = (smoe_patience){.keeps = settings->train.best || settings->train.patience > 0,
                       .patience = settings->train.patience};
  if (p->keeps) p->best.metric = SMOE_BEST_LOSS;
}

void smoe_patience_load(smoe_patience *p, const smoe_best *stored) {
  if (p->keeps && stored->metric == SMOE_BEST_LOSS) p->best = *stored;
}

bool smoe_patience_count(smoe_patience *p, int64_t update, double value) {
  smoe_best *best = &p->best;
  if (!p->keeps) return false;
  const bool better = isfinite(value) && (best->update == 0 || value < best->value);
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

void smoe_patience_describe(const smoe_patience *p, char *text, size_t bytes) {
  const smoe_best *best = &p->best;
  if (!p->keeps || best->update == 0)
    snprintf(text, bytes, "%s", "");
  else if (best->n_since == 0)
    snprintf(text, bytes, " (best)");
  else
    snprintf(text, bytes, " (best %.4f at update %lld, %lld evaluation%s ago)", best->value,
             (long long)best->update, (long long)best->n_since, best->n_since == 1 ? "" : "s");
}
