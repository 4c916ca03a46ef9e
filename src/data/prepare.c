#include "stablemoe/prepare.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "documents.h"
#include "shards.h"
#include "spool.h"
#include "stablemoe/arena.h"
#include "stablemoe/log.h"
#include "stablemoe/timer.h"

/* SentencePiece sees blocks of at most BLOCK_BYTES, SAMPLE_BYTES of them in all. Merges hardly
 * change beyond that, and the time to find them grows with it. */
enum { SAMPLE_BYTES = 4 << 20, BLOCK_BYTES = 4096 };

/* Bounds that keep arithmetic and messages sane. */
enum { VOCABULARY_MIN = 260, VOCABULARY_MAX = 1 << 20, DOCUMENT_BYTES_MAX = 1 << 28 };

/* Documents that are decoded again, to see that nothing is lost. */
enum { PROOFS = 64 };

smoe_prepare_options smoe_prepare_defaults(void) {
  return (smoe_prepare_options){.kind = SMOE_BPE, .valid_share = 0.05, .test_share = 0.05, .seed = 1};
}

/** The text a tokenizer is trained on: blocks of the training documents, evenly spread. */
typedef struct sample {
  smoe_document_source source;
  const char *text; /**< rest of the present document */
  size_t bytes;
  int64_t seen, taken, total;
  smoe_status status;
} sample;

/** Length of the block at the beginning: whole lines where they are not too long. */
static size_t block_bytes(const char *text, size_t bytes) {
  if (bytes <= BLOCK_BYTES) return bytes;
  const char *newline = memrchr(text, '\n', BLOCK_BYTES);
  return newline ? (size_t)(newline - text) + 1 : smoe_utf8_cut(text, BLOCK_BYTES);
}

/** The next training document into s; false at the end or on an error. */
static bool next_training_document(sample *s) {
  const smoe_document *document = NULL;
  do {
    s->status = smoe_document_source_next(&s->source, &document, &s->text);
    if (s->status != SMOE_OK || !document) return false;
  } while (document->split != SMOE_TRAIN);
  s->bytes = document->bytes;
  return true;
}

static bool next_sentence(void *context, const char **text, size_t *bytes) {
  sample *s = context;
  for (;;) {
    if (s->bytes == 0 && !next_training_document(s)) return false;
    *text = s->text;
    *bytes = block_bytes(s->text, s->bytes);
    s->text += *bytes;
    s->bytes -= *bytes;
    s->seen += (int64_t)*bytes;
    const bool all = s->total <= SAMPLE_BYTES;
    if (!all && (double)s->taken > (double)s->seen * SAMPLE_BYTES / (double)s->total) continue;
    s->taken += (int64_t)*bytes;
    return true;
  }
}

/** A SentencePiece model and what reads it. */
typedef struct trained {
  char *model;
  size_t bytes;
  smoe_tokenizer *tokenizer;
} trained;

static smoe_status train(trained *result, const smoe_documents *documents,
                         const smoe_prepare_options *options) {
  const double start = smoe_seconds();
  const int vocabulary = options->vocabulary ? options->vocabulary : SMOE_VOCABULARY_DEFAULT;
  sample s = {.total = documents->n_bytes[SMOE_TRAIN]};
  const double mib = (double)(s.total < SAMPLE_BYTES ? s.total : SAMPLE_BYTES) / (1 << 20);
  smoe_note("training a tokenizer (%s, %d pieces) on %.1f MiB of the training text",
            options->kind == SMOE_BPE ? "BPE" : "unigram", vocabulary, mib);
  smoe_document_source_open(&s.source, documents);
  const smoe_status status =
      smoe_tokenizer_train(&result->model, &result->bytes, options->kind, vocabulary, next_sentence, &s);
  smoe_document_source_close(&s.source);
  SMOE_TRY(s.status);
  SMOE_TRY(status);
  smoe_note("trained in %.1f s", smoe_seconds() - start);
  return SMOE_OK;
}

static smoe_status get_tokenizer(trained *result, const smoe_documents *documents,
                                 const smoe_prepare_options *options) {
  if (options->model_path)
    SMOE_TRY(smoe_tokenizer_load(&result->model, &result->bytes, options->model_path));
  else
    SMOE_TRY(train(result, documents, options));
  const smoe_status status = smoe_tokenizer_open(&result->tokenizer, result->model, result->bytes);
  SMOE_CHECK(status == SMOE_OK || !options->model_path, status, "'%s': %s", options->model_path,
             smoe_last_error());
  SMOE_TRY(status);
  const int V = smoe_tokenizer_size(result->tokenizer);
  SMOE_CHECK(!options->model_path || !options->vocabulary || options->vocabulary == V, SMOE_ERR_CONFIG,
             "the model '%s' has %d pieces, not the %d asked for: leave --vocab out", options->model_path, V,
             options->vocabulary);
  SMOE_CHECK(smoe_tokenizer_end(result->tokenizer) >= 0, SMOE_ERR_CONFIG,
             "the model '%s' has no end-of-sentence piece, which documents end with", options->model_path);
  return SMOE_OK;
}

/** Whether the tokens give the text back. */
static smoe_status prove(const smoe_tokenizer *tokenizer, const smoe_document *document, const char *text,
                         const int32_t *ids, size_t n, bool *same) {
  char *back;
  SMOE_TRY(smoe_tokenizer_decode(tokenizer, ids, n, &back));
  *same = strlen(back) == document->bytes && memcmp(back, text, document->bytes) == 0;
  smoe_free(back);
  return SMOE_OK;
}

static smoe_status encode_document(smoe_spool *spool, const smoe_tokenizer *tokenizer,
                                   const smoe_document *document, const char *text, bool proof, bool *same) {
  int32_t *ids;
  size_t n;
  const int32_t end = smoe_tokenizer_end(tokenizer);
  SMOE_TRY(smoe_tokenizer_encode(tokenizer, text, document->bytes, &ids, &n));
  smoe_status status = proof ? prove(tokenizer, document, text, ids, n, same) : SMOE_OK;
  if (status == SMOE_OK) status = smoe_spool_add(spool, document->split, ids, n);
  if (status == SMOE_OK) status = smoe_spool_add(spool, document->split, &end, 1);
  if (status == SMOE_OK) smoe_spool_end(spool, document->split, document->bytes);
  smoe_free(ids);
  return status;
}

static smoe_status encode_all(smoe_spool *spool, const smoe_tokenizer *tokenizer,
                              smoe_document_source *source, size_t n_documents) {
  int n_lossy = 0;
  for (size_t d = 0; d < n_documents; d++) {
    const smoe_document *document;
    const char *text;
    bool same = true;
    SMOE_TRY(smoe_document_source_next(source, &document, &text));
    const bool proof = d % (n_documents / PROOFS + 1) == 0;
    SMOE_TRY(encode_document(spool, tokenizer, document, text, proof, &same));
    n_lossy += !same;
    if (d % 64 == 0) smoe_live("encoding: %zu of %zu documents", d, n_documents);
  }
  if (n_lossy > 0)
    smoe_warn("this tokenizer changes text: %d of %d documents do not come back exactly; --model wants one "
              "with byte fallback, identity normalisation and no dummy prefix",
              n_lossy, PROOFS < n_documents ? PROOFS : (int)n_documents);
  return SMOE_OK;
}

static smoe_status encode(smoe_spool *spool, const smoe_documents *documents, const trained *with) {
  const double start = smoe_seconds();
  smoe_document_source source;
  smoe_document_source_open(&source, documents);
  const smoe_status status = encode_all(spool, with->tokenizer, &source, documents->n_documents);
  smoe_document_source_close(&source);
  SMOE_TRY(status);
  smoe_note("encoded %zu documents in %.1f s", documents->n_documents, smoe_seconds() - start);
  return SMOE_OK;
}

/** Everything that has to be given back. */
typedef struct preparation {
  smoe_documents documents;
  trained with;
  smoe_spool spool;
} preparation;

static smoe_status prepare_text(preparation *p, const smoe_prepare_options *options,
                                const char *const *inputs, int n_inputs) {
  SMOE_TRY(smoe_documents_open(&p->documents, options, inputs, n_inputs));
  SMOE_TRY(smoe_documents_split(&p->documents, options->valid_share, options->test_share, options->seed));
  const smoe_documents *documents = &p->documents;
  smoe_note("%zu documents in %zu file%s", documents->n_documents, documents->files.n_files,
            documents->files.n_files == 1 ? "" : "s");
  /* Before minutes of work: an output that cannot be written fails here. */
  SMOE_TRY(smoe_spool_open(&p->spool, options->output, VOCABULARY_MAX));
  SMOE_TRY(get_tokenizer(&p->with, documents, options));
  p->spool.vocabulary = smoe_tokenizer_size(p->with.tokenizer);
  SMOE_TRY(encode(&p->spool, documents, &p->with));

  char *sources = smoe_sources_text(inputs, n_inputs);
  const smoe_corpus_about about = {
      .kind = options->model_path         ? "given"
              : options->kind == SMOE_BPE ? "bpe"
                                          : "unigram",
      .sources = sources,
      .end_id = smoe_tokenizer_end(p->with.tokenizer),
      .tokenizer = p->with.tokenizer,
      .model = p->with.model,
      .model_bytes = p->with.bytes,
  };
  const smoe_status status = smoe_corpus_write(&p->spool, &about);
  smoe_free(sources);
  return status;
}

smoe_status smoe_prepare_check_output(const char *output, const char *const *inputs, int n_inputs) {
  struct stat there, input;
  if (stat(output, &there)) return SMOE_OK;
  SMOE_CHECK(S_ISREG(there.st_mode), SMOE_ERR_CONFIG, "the output '%s' exists and is no regular file",
             output);
  for (int i = 0; i < n_inputs; i++) {
    const bool same =
        stat(inputs[i], &input) == 0 && input.st_dev == there.st_dev && input.st_ino == there.st_ino;
    SMOE_CHECK(!same, SMOE_ERR_CONFIG, "the output '%s' is one of the texts, and would replace it", output);
  }
  return SMOE_OK;
}

static smoe_status check_options(const smoe_prepare_options *options) {
  SMOE_CHECK(options->output && options->output[0], SMOE_ERR_CONFIG, "no output is named");
  SMOE_CHECK(options->vocabulary == 0 ||
                 (options->vocabulary >= VOCABULARY_MIN && options->vocabulary <= VOCABULARY_MAX),
             SMOE_ERR_CONFIG, "a vocabulary of %d pieces is not between %d and %d", options->vocabulary,
             VOCABULARY_MIN, VOCABULARY_MAX);
  SMOE_CHECK(options->valid_share > 0 && options->valid_share <= 0.4 && options->test_share > 0 &&
                 options->test_share <= 0.4,
             SMOE_ERR_CONFIG, "the shares %g and %g for validation and test should be in (0, 0.4]",
             options->valid_share, options->test_share);
  SMOE_CHECK(options->document_bytes >= 0 && options->document_bytes <= DOCUMENT_BYTES_MAX, SMOE_ERR_CONFIG,
             "documents of %lld bytes are not between 1 and %d", (long long)options->document_bytes,
             DOCUMENT_BYTES_MAX);
  return SMOE_OK;
}

smoe_status smoe_prepare(const smoe_prepare_options *options, const char *const *inputs, int n_inputs) {
  SMOE_TRY(check_options(options));
  SMOE_CHECK(n_inputs > 0, SMOE_ERR_CONFIG, "no text is named");
  SMOE_TRY(smoe_prepare_check_output(options->output, inputs, n_inputs));
  for (int i = 0; i < n_inputs; i++) {
    if (smoe_is_shard(inputs[i])) return smoe_prepare_shards(options, inputs, n_inputs);
  }
  preparation p = {0};
  const smoe_status status = prepare_text(&p, options, inputs, n_inputs);
  smoe_spool_close(&p.spool);
  smoe_tokenizer_close(p.with.tokenizer);
  smoe_free(p.with.model);
  smoe_documents_close(&p.documents);
  return status;
}
