#include "stablemoe/prepare.h"

#include <math.h>
#include <stdio.h>

#include "app.h"
#include "stablemoe/corpus.h"

typedef struct options {
  const char *output, *model, *extensions;
  int64_t vocabulary, seed, document_bytes;
  double valid_share, test_share;
  int kind;
  bool lines;
} options;

static const char *const KINDS[] = {"bpe", "unigram", NULL}; /* in the order of smoe_tokenizer_kind */

/* The rest as in smoe_prepare_defaults. */
static const options DEFAULTS = {.seed = 1, .valid_share = 0.05, .test_share = 0.05, .kind = SMOE_BPE};

static const smoe_option OPTIONS[] = {
    {'o', "output", SMOE_OPTION_OUTPUT, offsetof(options, output), "FILE",
     "the corpus; a file of that name is replaced once the new one is whole"},
    {0, "vocab", SMOE_OPTION_INT, offsetof(options, vocabulary), "N",
     "pieces of the vocabulary (default 8192)", 1, INT32_MAX},
    {0, "tokenizer", SMOE_OPTION_CHOICE, offsetof(options, kind), NULL,
     "what to train on the text (default bpe)", .choices = KINDS},
    {0, "model", SMOE_OPTION_FILE, offsetof(options, model), "FILE",
     "take this SentencePiece model, train none"},
    {0, "valid", SMOE_OPTION_REAL, offsetof(options, valid_share), "SHARE",
     "of the text for validation (default 0.05)", 0, 1},
    {0, "test", SMOE_OPTION_REAL, offsetof(options, test_share), "SHARE",
     "of the text for the test (default 0.05)", 0, 1},
    {0, "seed", SMOE_OPTION_INT, offsetof(options, seed), "N",
     "of the choice of documents for the splits (default 1)", 0, 0x1p63},
    {0, "ext", SMOE_OPTION_TEXT, offsetof(options, extensions), "LIST",
     "endings of files to take from directories: .py,.txt (default: all text)"},
    {0, "lines", SMOE_OPTION_FLAG, offsetof(options, lines), NULL,
     "every line is a document (default: every file, cut at blank lines)"},
    {0, "document-bytes", SMOE_OPTION_INT, offsetof(options, document_bytes), "N",
     "cut a file at the first blank line past N bytes (default 16384, less for little text)", 1, INT32_MAX},
};

static void print_split(const smoe_corpus *corpus, smoe_split split, const char *name) {
  const double n = (double)corpus->n_tokens[split], bytes = (double)corpus->n_bytes[split];
  printf("%-6s %11lld %13lld ", name, (long long)corpus->n_documents[split],
         (long long)corpus->n_tokens[split]);
  if (bytes > 0)
    printf("%14.0f %12.3f\n", bytes, bytes / n);
  else
    printf("%14s %12s\n", "unknown", "unknown");
}

static smoe_status print_corpus(const char *path) {
  smoe_corpus corpus;
  SMOE_TRY(smoe_corpus_open_local(&corpus, path));
  printf("%s: vocabulary %d, fingerprint %016llx\n\n", path, corpus.vocabulary,
         (unsigned long long)corpus.fingerprint);
  printf("%-6s %11s %13s %14s %12s\n", "split", "documents", "tokens", "bytes", "bytes/token");
  print_split(&corpus, SMOE_TRAIN, "train");
  print_split(&corpus, SMOE_VALID, "valid");
  print_split(&corpus, SMOE_TEST, "test");
  printf("\nCross entropy of the validation split, in nats per token, with counts of the training split\n"
         "(add-one); a model has to beat the second:\n"
         "  unigram %8.4f   (perplexity %.1f)\n"
         "  bigram  %8.4f   (perplexity %.1f)\n",
         corpus.unigram, exp(corpus.unigram), corpus.bigram, exp(corpus.bigram));
  smoe_corpus_close(&corpus);
  return SMOE_OK;
}

static smoe_status check(const void *values, const smoe_arguments *arguments) {
  SMOE_CHECK(((const options *)values)->output, SMOE_ERR_CONFIG,
             "prepare: -o CORPUS.h5 is missing; see prepare --help");
  return SMOE_OK;
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  const options *o = values;
  smoe_prepare_options wanted = smoe_prepare_defaults();
  wanted.output = o->output;
  wanted.model_path = o->model;
  wanted.kind = (smoe_tokenizer_kind)o->kind;
  wanted.vocabulary = (int)o->vocabulary;
  wanted.valid_share = o->valid_share;
  wanted.test_share = o->test_share;
  wanted.seed = (uint64_t)o->seed;
  wanted.extensions = o->extensions;
  wanted.lines = o->lines;
  wanted.document_bytes = o->document_bytes;
  SMOE_TRY(smoe_prepare(&wanted, arguments->word, arguments->n));
  return print_corpus(o->output);
}

const smoe_command smoe_command_prepare = {
    .name = "prepare",
    .arguments = "TEXT... -o CORPUS.h5",
    .title = "make a corpus from text files or directories",
    .text =
        "Make a corpus from text files and directories (read recursively, in sorted order, without hidden "
        "files), or from token shards of llm.c (.bin). Text is UTF-8. Serial: one rank does it.",
    .after =
        "The tokenizer is trained on at most 4 MiB of the training split, spread evenly over it. From 50 "
        "files on, all of a file goes to one split. Shards whose names contain val or test are those "
        "splits.",
    .example = "stablemoe prepare texts/ -o corpus.h5 --vocab 8192",
    .serial = true,
    .usage = "texts",
    .missing = "no text is named",
    .min_args = 1,
    .max_args = -1,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .defaults = &DEFAULTS,
    .check = check,
    .run = run,
};
