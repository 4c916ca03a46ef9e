#include "stablemoe/prepare.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "documents.h"
#include "sample.h"
#include "shards.h"
#include "spool.h"
#include "stablemoe/arena.h"
#include "stablemoe/log.h"
#include "stablemoe/timer.h"

/* Bounds that keep arithmetic and messages sane. */
enum { VOCABULARY_MIN = 260, VOCABULARY_MAX = 1 << 20, DOCUMENT_BYTES_MAX = 1 << 28 };

/* Documents that are decoded again, to see that nothing is lost. */
enum { PROOFS = 64 };

smoe_prepare_options smoe_prepare_defaults(void) {
  return (smoe_prepare_options){.kind = SMOE_BPE, .valid_share = 0.05, .test_share = 0.05, .seed = 1};
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
  const int64_t bytes = documents->n_bytes[SMOE_TRAIN];
  SMOE_CHECK(
      bytes > 0, SMOE_ERR_CONFIG,
      "there is no training text to train a tokenizer on: give the model's with --model (tokenizer.model of "
      "its run directory)");
  smoe_note("training a tokenizer (%s, %d pieces) on %.1f MiB of the training text",
            options->kind == SMOE_BPE ? "BPE" : "unigram", vocabulary,
            (double)smoe_sample_bytes(options, bytes) / (1 << 20));
  smoe_sample sample;
  smoe_status status = smoe_sample_read(&sample, documents, options, vocabulary);
  if (status == SMOE_OK) smoe_sample_report(&sample);
  if (status == SMOE_OK)
    status = smoe_tokenizer_train(&result->model, &result->bytes, options->kind, vocabulary, sample.coverage,
                                  smoe_sample_next, &sample);
  smoe_sample_free(&sample);
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

/** What encoding has seen. */
typedef struct encoding {
  smoe_spool *spool;
  const smoe_tokenizer *tokenizer;
  bool every; /**< decode each document, since the tokenizer may lose text; else some, as a proof */
  size_t n_decoded, n_lossy; /**< documents */
  int64_t bytes, back;       /**< of the text; that the tokens hold */
} encoding;

/** Decode what a document was encoded to; *back: its bytes, without those that stand for unknown characters. */
static smoe_status decode(encoding *e, const smoe_document *document, const char *text, const int32_t *ids,
                          size_t n, int64_t *back) {
  char *decoded;
  size_t bytes;
  SMOE_TRY(smoe_tokenizer_decode_known(e->tokenizer, ids, n, &decoded, &bytes));
  e->n_decoded++;
  e->n_lossy += bytes != document->bytes || memcmp(decoded, text, bytes) != 0;
  *back = (int64_t)bytes;
  smoe_free(decoded);
  return SMOE_OK;
}

static smoe_status encode_document(encoding *e, const smoe_document *document, const char *text, bool proof) {
  int32_t *ids;
  size_t n;
  int64_t back = document->bytes;
  const int32_t end = smoe_tokenizer_end(e->tokenizer);
  SMOE_TRY(smoe_tokenizer_encode(e->tokenizer, text, document->bytes, &ids, &n));
  smoe_status status = e->every || proof ? decode(e, document, text, ids, n, &back) : SMOE_OK;
  if (status == SMOE_OK) status = smoe_spool_add(e->spool, document->split, ids, n);
  if (status == SMOE_OK) status = smoe_spool_add(e->spool, document->split, &end, 1);
  if (status == SMOE_OK) smoe_spool_end(e->spool, document->split, back);
  e->bytes += document->bytes;
  e->back += back;
  smoe_free(ids);
  return status;
}

static smoe_status encode_all(encoding *e, smoe_document_source *source, size_t n_documents) {
  for (size_t d = 0;; d++) {
    const smoe_document *document;
    const char *text;
    SMOE_TRY(smoe_document_source_next(source, &document, &text));
    if (!document) break;
    SMOE_TRY(encode_document(e, document, text, d % (n_documents / PROOFS + 1) == 0));
    if (d % 64 == 0) smoe_live("encoding: %zu of %zu documents", d, n_documents);
  }
  if (e->n_lossy > 0)
    smoe_warn(
        "this tokenizer changes text: %zu of %zu documents do not come back exactly, and %.2f %% of the "
        "bytes "
        "are lost; bits per byte count those that come back. A lossless --model has byte fallback, identity "
        "normalisation and no dummy prefix",
        e->n_lossy, e->n_decoded, e->bytes > 0 ? 100.0 * (1 - (double)e->back / (double)e->bytes) : 0.0);
  return SMOE_OK;
}

static smoe_status encode(smoe_spool *spool, const smoe_documents *documents, const trained *with,
                          bool given) {
  const double start = smoe_seconds();
  smoe_document_source source;
  encoding e = {.spool = spool, .tokenizer = with->tokenizer, .every = given};
  smoe_document_source_open(&source, documents);
  const smoe_status status = encode_all(&e, &source, documents->n_documents);
  smoe_document_source_close(&source);
  SMOE_TRY(status);
  smoe_note("encoded in %.1f s", smoe_seconds() - start);
  return SMOE_OK;
}

/** Everything that has to be given back. */
typedef struct preparation {
  smoe_documents documents;
  trained with;
  smoe_spool spool;
} preparation;

static smoe_status prepare_text(preparation *p, const smoe_prepare_options *options, smoe_text_list *files,
                                const char *sources) {
  SMOE_TRY(smoe_documents_open(&p->documents, options, files));
  const smoe_documents *documents = &p->documents;
  smoe_note("%zu documents in %zu file%s", documents->n_documents, documents->files.n_files,
            documents->files.n_files == 1 ? "" : "s");
  SMOE_TRY(smoe_documents_split(&p->documents, options));
  smoe_documents_print_splits(documents);
  /* Before minutes of work: an output that cannot be written fails here. */
  SMOE_TRY(smoe_spool_open(&p->spool, options->output, VOCABULARY_MAX));
  SMOE_TRY(get_tokenizer(&p->with, documents, options));
  p->spool.vocabulary = smoe_tokenizer_size(p->with.tokenizer);
  SMOE_TRY(encode(&p->spool, documents, &p->with, options->model_path != NULL));

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
  return smoe_corpus_write(&p->spool, &about);
}

smoe_status smoe_prepare_check_output(const char *output, const char *const *inputs, int n_inputs) {
  struct stat there, input;
  if (stat(output, &there)) return SMOE_OK;
  SMOE_CHECK(S_ISREG(there.st_mode), SMOE_ERR_CONFIG, "the output '%s' exists and is not a regular file",
             output);
  for (int i = 0; i < n_inputs; i++) {
    const bool same =
        stat(inputs[i], &input) == 0 && input.st_dev == there.st_dev && input.st_ino == there.st_ino;
    SMOE_CHECK(!same, SMOE_ERR_CONFIG, "the output '%s' is one of the texts, and would replace it", output);
  }
  return SMOE_OK;
}

static smoe_status check_output(const smoe_prepare_options *options, const smoe_inputs *inputs) {
  for (int i = 0; i < SMOE_SPLITS; i++)
    SMOE_TRY(smoe_prepare_check_output(options->output, options->own[i].path, options->own[i].n));
  return smoe_prepare_check_output(options->output, inputs->path, inputs->n);
}

static smoe_status check_options(const smoe_prepare_options *options) {
  SMOE_CHECK(options->output && options->output[0], SMOE_ERR_CONFIG, "no output is named");
  SMOE_CHECK(options->valid_share >= 0 && options->test_share >= 0 &&
                 options->valid_share + options->test_share <= 1 + 1e-9,
             SMOE_ERR_CONFIG,
             "the shares %g and %g for validation and test should be 0 to 1, and together at most 1",
             options->valid_share, options->test_share);
  SMOE_CHECK(!options->lines || !options->separator, SMOE_ERR_CONFIG,
             "documents are lines (--lines) or end at a mark (--separator), not both");
  SMOE_CHECK(!options->separator || options->separator[0], SMOE_ERR_CONFIG, "the --separator is empty");
  SMOE_CHECK(options->document_bytes >= 0 && options->document_bytes <= DOCUMENT_BYTES_MAX, SMOE_ERR_CONFIG,
             "documents of %lld bytes are not between 1 and %d", (long long)options->document_bytes,
             DOCUMENT_BYTES_MAX);
  return SMOE_OK;
}

static smoe_status list_files(smoe_text_list *files, const smoe_prepare_options *options,
                              const smoe_inputs *open) {
  size_t dropped;
  const char *extensions = options->extensions;
  for (int i = 0; i < open->n; i++)
    SMOE_TRY(smoe_text_list_add(files, open->path[i], extensions, SMOE_SPLIT_OPEN));
  for (uint8_t s = 0; s < SMOE_SPLITS; s++)
    for (int i = 0; i < options->own[s].n; i++)
      SMOE_TRY(smoe_text_list_add(files, options->own[s].path[i], extensions, s));
  SMOE_TRY(smoe_text_list_unique(files, &dropped));
  if (dropped > 0)
    smoe_note("%zu name%s of files that were there under another name left out", dropped,
              dropped == 1 ? "" : "s");
  return SMOE_OK;
}

char *smoe_sources_text(const char *const *inputs, int n_inputs) {
  enum { ROOM = 16384 }; /* an attribute of HDF5 ends at 64 KiB */
  char *text = smoe_alloc(ROOM);
  size_t used = 0;
  for (int i = 0; i < n_inputs; i++) {
    if (used + strlen(inputs[i]) + 8 > ROOM) {
      memcpy(text + used, "...\n", 5);
      break;
    }
    used += (size_t)snprintf(text + used, ROOM - used, "%s\n", inputs[i]);
  }
  return text;
}

/** All inputs as text, with the split of those that are given to one. */
static char *sources_text(const smoe_prepare_options *options, const smoe_inputs *open) {
  int n = open->n;
  for (int s = 0; s < SMOE_SPLITS; s++) n += options->own[s].n;
  char **line = smoe_alloc((size_t)n * sizeof *line);
  n = 0;
  for (int i = 0; i < open->n; i++) line[n++] = smoe_strdup(open->path[i]);
  for (int s = 0; s < SMOE_SPLITS; s++)
    for (int i = 0; i < options->own[s].n; i++)
      line[n++] = smoe_sprintf("%s: %s", smoe_split_name(s), options->own[s].path[i]);
  char *text = smoe_sources_text((const char *const *)line, n);
  for (int i = 0; i < n; i++) smoe_free(line[i]);
  smoe_free(line);
  return text;
}

static smoe_status prepare_list(const smoe_prepare_options *options, smoe_text_list *files,
                                const char *sources) {
  SMOE_CHECK(options->vocabulary == 0 ||
                 (options->vocabulary >= VOCABULARY_MIN && options->vocabulary <= VOCABULARY_MAX),
             SMOE_ERR_CONFIG, "a vocabulary of %d pieces is not between %d and %d", options->vocabulary,
             VOCABULARY_MIN, VOCABULARY_MAX);
  preparation p = {0};
  const smoe_status status = prepare_text(&p, options, files, sources);
  smoe_spool_close(&p.spool);
  smoe_tokenizer_close(p.with.tokenizer);
  smoe_free(p.with.model);
  smoe_documents_close(&p.documents);
  return status;
}

smoe_status smoe_prepare(const smoe_prepare_options *options, const char *const *inputs, int n_inputs) {
  SMOE_TRY(check_options(options));
  const smoe_inputs open = {inputs, n_inputs};
  const bool some =
      n_inputs + options->own[SMOE_TRAIN].n + options->own[SMOE_VALID].n + options->own[SMOE_TEST].n > 0;
  SMOE_CHECK(some, SMOE_ERR_CONFIG, "no text is named");
  SMOE_TRY(check_output(options, &open));
  smoe_text_list files = {0};
  char *sources = sources_text(options, &open);
  smoe_status status = list_files(&files, options, &open);
  if (status == SMOE_OK) {
    if (smoe_are_shards(&files, options))
      status = smoe_prepare_shards(options, &files, sources);
    else
      status = prepare_list(options, &files, sources);
  }
  smoe_text_list_free(&files);
  smoe_free(sources);
  return status;
}
