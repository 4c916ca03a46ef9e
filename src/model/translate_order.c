/* Many sources: in order of length, so that batches have little padding. */
#include <stdlib.h>

#include "stablemoe/log.h"
#include "stablemoe/translate.h"

typedef struct place {
  int32_t length;
  size_t number;
} place;

static int by_length(const void *a, const void *b) {
  const place *x = a, *y = b;
  if (x->length != y->length) return x->length < y->length ? -1 : 1;
  return x->number < y->number ? -1 : x->number > y->number;
}

static place *in_order(const int32_t *length, size_t n, size_t *n_places) {
  place *places = smoe_alloc((n + 1) * sizeof *places);
  *n_places = 0;
  for (size_t i = 0; i < n; i++)
    if (length[i] > 0) places[(*n_places)++] = (place){length[i], i};
  qsort(places, *n_places, sizeof *places, by_length);
  return places;
}

static smoe_status translate_batch(smoe_translator *translator, const int32_t *const *source,
                                   const place *places, size_t n, const smoe_pass *pass,
                                   smoe_translation_taker *take, void *context) {
  const int32_t **batch = smoe_alloc(n * sizeof *batch);
  int32_t *length = smoe_alloc(n * sizeof *length);
  for (size_t i = 0; i < n; i++) {
    batch[i] = source[places[i].number];
    length[i] = places[i].length;
  }
  smoe_translations t;
  smoe_translator_run(translator, batch, length, n, pass, &t);
  smoe_status status = SMOE_OK;
  for (size_t i = 0; i < n && status == SMOE_OK; i++)
    status = take(context, places[i].number, t.best + i * t.beam, t.n_best[i]);
  smoe_translations_release(&t);
  smoe_free(batch);
  smoe_free(length);
  return status;
}

smoe_status smoe_translator_run_all(smoe_translator *translator, const smoe_group *group,
                                    const int32_t *const *source, const int32_t *length, size_t n,
                                    const smoe_pass *pass, smoe_translation_taker *take, void *context) {
  size_t n_places;
  place *places = in_order(length, n, &n_places);
  smoe_status status = SMOE_OK;
  for (size_t i = 0; i < n_places && status == SMOE_OK;) {
    const size_t room = smoe_translator_batch(translator), left = n_places - i;
    const size_t count = left < room ? left : room;
    status =
        smoe_group_agree(group, translate_batch(translator, source, places + i, count, pass, take, context));
    i += count;
    smoe_live("%zu of %zu sentences", i, n_places);
  }
  smoe_free(places);
  return status;
}

size_t smoe_translation_length(const smoe_config *config, size_t longest) {
  const size_t context = (size_t)smoe_config_settings(config)->model.context, most = 2 * longest + 10;
  return most < context ? most : context;
}
