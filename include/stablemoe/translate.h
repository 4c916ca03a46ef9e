/** Translating: beam search over a model of family translation.
 *
 *  Sentences are cut into batches of train.lanes lanes with an equal number of sentences, whatever ranks there are;
 *  shapes follow from the batch alone, so the text is the same on any number of ranks. The encoder runs once per
 *  batch; keys and values of encoder and decoder are kept.
 */
#ifndef STABLEMOE_TRANSLATE_H
#define STABLEMOE_TRANSLATE_H

#include "stablemoe/model.h"

typedef struct smoe_translate_options {
  int beam;              /**< hypotheses per sentence that are followed */
  double length_penalty; /**< a hypothesis scores log p / length^penalty; end counted */
  size_t lane_sentences; /**< sentences per lane of a batch */
  size_t length_max;     /**< tokens of a translation at most, end counted */
} smoe_translate_options;

/** One translation. */
typedef struct smoe_hypothesis {
  int32_t *token; /**< [n] without end; in memory of the result */
  size_t n;
  double log_p; /**< of all tokens and the end, nats */
  double score; /**< log_p / (n + 1)^penalty */
} smoe_hypothesis;

/** Translations of a batch, on every rank. */
typedef struct smoe_translations {
  size_t n_sentences, beam;
  smoe_hypothesis *best; /**< [n_sentences, beam] best first; n_best[s] of them */
  size_t *n_best;        /**< [n_sentences] */
  int32_t *memory;
} smoe_translations;

typedef struct smoe_translator smoe_translator;

/** Set up for batches. model: not for training; built with smoe_translator_shape. Collective. Errors: agreed. */
smoe_status smoe_translator_create(smoe_translator **translator, smoe_model *model, int32_t end,
                                   const smoe_translate_options *options);

/** Free it; NULL is accepted. Local. */
void smoe_translator_destroy(smoe_translator *translator);

/** Shape of a model that translates so. source_max: tokens of a source at most. Local. */
smoe_model_shape smoe_translator_shape(const smoe_config *config, int vocabulary, size_t source_max,
                                       const smoe_translate_options *options);

/** Sentences of a batch: lanes times lane_sentences. Local. */
size_t smoe_translator_batch(const smoe_translator *translator);

/** Translate up to a batch of sentences.
 *
 *  Collective; the same arguments on all ranks.
 *  source  in   [n] token ids, tag and end included; length [n]
 *  out     out  free with smoe_translations_release
 *
 *  Method:  beam search as in fairseq: of each sentence's beam and vocabulary the 2 beam best are looked at; those
 *           that end are finished, and the sentence is done when `beam` are. Ties go to the lower hypothesis, then
 *           the lower token.
 */
void smoe_translator_run(smoe_translator *translator, const int32_t *const *source, const int32_t *length,
                         size_t n, const smoe_pass *pass, smoe_translations *out);

/** Takes the hypotheses of source i, best first: n of them, maybe none. Their memory is not kept. */
typedef smoe_status smoe_translation_taker(void *context, size_t i, const smoe_hypothesis *best, size_t n);

/** Translate any number of sources, those of like length together.
 *
 *  Collective over group, that of the model; the same arguments on all ranks.
 *  source  in  [n] as for smoe_translator_run; length [n], 0: there is nothing to translate, and nothing to take
 *  take    in  called on every rank, in the same order
 *  Errors:  agreed; those of take.
 */
smoe_status smoe_translator_run_all(smoe_translator *translator, const smoe_group *group,
                                    const int32_t *const *source, const int32_t *length, size_t n,
                                    const smoe_pass *pass, smoe_translation_taker *take, void *context);

/** Tokens that translations of sources of up to `longest` tokens may have by default, end counted: twice as many and
 *  10, within model.context. Local.
 */
size_t smoe_translation_length(const smoe_config *config, size_t longest);

/** Bytes that a translator takes on this rank beside its model. Local. */
double smoe_translator_bytes(const smoe_translator *translator);

/** Free the result. Local. */
void smoe_translations_release(smoe_translations *translations);

#endif
