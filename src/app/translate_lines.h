/** Lines of text through a translation model. */
#ifndef STABLEMOE_APP_TRANSLATE_LINES_H
#define STABLEMOE_APP_TRANSLATE_LINES_H

#include "open_model.h"
#include "stablemoe/tokenizer.h"
#include "stablemoe/translate.h"

/** How to translate. */
typedef struct smoe_translate_how {
  int64_t beam, lane_sentences, length_max;
  double length_penalty;
} smoe_translate_how;

extern const smoe_translate_how smoe_translate_defaults;

/** Translations of n sources, each [n_best] texts, best first. */
typedef struct smoe_line_translation {
  size_t n_best;
  char **text;     /**< [n_best] */
  int32_t **token; /**< [n_best] of [n_tokens] ids, without end */
  size_t *n_tokens;
  double *score, *log_p; /**< [n_best] as of smoe_hypothesis */
} smoe_line_translation;

/** Translate token ids (tag and end included); length 0: nothing to translate, no result.
 *
 *  Collective; the same on all ranks. m: opened by smoe_app_task_open; its model is built here.
 *  out  [n] zeroed; free with smoe_line_translations_release
 */
smoe_status smoe_translate_ids(smoe_app_model *m, const smoe_tokenizer *tokenizer,
                               const int32_t *const *source, const int32_t *length, size_t n,
                               const smoe_translate_how *how, smoe_line_translation *out);

void smoe_line_translations_release(smoe_line_translation *lines, size_t n);

#endif
