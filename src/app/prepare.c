#include "stablemoe/prepare.h"

#include <math.h>
#include <stdio.h>

#include "app.h"
#include "stablemoe/corpus.h"

typedef struct options {
  const char *output, *model, *extensions, *separator, *field;
  int64_t vocabulary, seed, document_bytes, sample_mib;
  double valid_share, test_share, coverage;
  smoe_words own[SMOE_SPLITS];
  int kind, raw;
  bool lines, dedup;
} options;

static const char *const KINDS[] = {"bpe", "unigram", NULL}; /* in the order of smoe_tokenizer_kind */

static const char *const RAWS[] = {"no", "uint16", "uint32", NULL};

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
    {0, "coverage", SMOE_OPTION_REAL, offsetof(options, coverage), "SHARE",
     "of characters that get pieces, the rarest are spelled in bytes (default: 0.9995, less where the "
     "vocabulary is "
     "small for the script)",
     0.01, 1},
    {0, "sample", SMOE_OPTION_INT, offsetof(options, sample_mib), "MIB",
     "train the tokenizer on so much text (default: 4, a sixteenth of a larger training split up to 64)", 1,
     1 << 14},
    {0, "train-text", SMOE_OPTION_WORDS, offsetof(options, own[SMOE_TRAIN]), "PATH",
     "a file or directory for training alone; may be given several times"},
    {0, "valid-text", SMOE_OPTION_WORDS, offsetof(options, own[SMOE_VALID]), "PATH",
     "the same, for validation alone"},
    {0, "test-text", SMOE_OPTION_WORDS, offsetof(options, own[SMOE_TEST]), "PATH",
     "the same, for the test alone"},
    {0, "valid", SMOE_OPTION_REAL, offsetof(options, valid_share), "SHARE",
     "of TEXT for validation, if that has no text of its own (default 0.05)", 0, 1},
    {0, "test", SMOE_OPTION_REAL, offsetof(options, test_share), "SHARE",
     "of TEXT for the test, if that has no text of its own (default 0.05)", 0, 1},
    {0, "dedup", SMOE_OPTION_FLAG, offsetof(options, dedup), NULL,
     "keep one of equal documents: of the test, else of validation, else of training"},
    {0, "seed", SMOE_OPTION_INT, offsetof(options, seed), "N",
     "of the choice of documents for the splits (default 1)", 0, 0x1p63},
    {0, "ext", SMOE_OPTION_TEXT, offsetof(options, extensions), "LIST",
     "endings of files to take from directories: .py,.txt (default: all text); .gz, .zst, .xz, .bz2 may "
     "follow"},
    {0, "field", SMOE_OPTION_TEXT, offsetof(options, field), "NAME",
     "field of JSON objects that is the document (default text); - takes JSON as plain text"},
    {0, "separator", SMOE_OPTION_TEXT, offsetof(options, separator), "TEXT",
     "documents end at this mark, such as '<|endoftext|>'; of token files, at this token id"},
    {0, "raw", SMOE_OPTION_CHOICE, offsetof(options, raw), NULL,
     "files are token ids without a header, as nanoGPT writes them", .choices = RAWS},
    {0, "lines", SMOE_OPTION_FLAG, offsetof(options, lines), NULL,
     "every line is a document (default: every file, cut at blank lines)"},
    {0, "document-bytes", SMOE_OPTION_INT, offsetof(options, document_bytes), "N",
     "cut a file at the first blank line past N bytes (default 16384, less for little text)", 1, INT32_MAX},
};

static void print_split(const smoe_corpus *corpus, smoe_split split, const char *name) {
  const double n = (double)corpus->n_tokens[split], bytes = (double)corpus->n_bytes[split];
  printf("%-6s %11lld %13lld ", name, (long long)corpus->n_documents[split],
         (long long)corpus->n_tokens[split]);
  if (n == 0)
    printf("%14.0f %12s\n", bytes, "-");
  else if (bytes > 0)
    printf("%14.0f %12.3f\n", bytes, bytes / n);
  else
    printf("%14s %12s\n", "unknown", "unknown");
}

/* What the default configuration means for this corpus. */
static void print_passes(const smoe_corpus *corpus) {
  smoe_config *config = smoe_app_config();
  const smoe_settings *s = smoe_config_settings(config);
  const double batch = (double)(s->train.batch_sequences * s->model.context),
               updates = (double)s->train.updates;
  const double train = (double)corpus->n_tokens[SMOE_TRAIN];
  if (train > 0)
    printf(
        "\nOne pass over the training split is %.4g updates of %.0f tokens (the default batch); the default "
        "%.0f updates are %.3g passes.\n",
        train / batch, batch, updates, updates * batch / train);
  smoe_config_destroy(config);
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
  if (isnan(corpus.bigram))
    puts("\nNo cross entropy of counts: training or validation is empty.");
  else
    printf("\nCross entropy of the validation split, in nats per token, with counts of the training split\n"
           "(add-one); a model has to beat the second:\n"
           "  unigram %8.4f   (perplexity %.1f)\n"
           "  bigram  %8.4f   (perplexity %.1f)\n",
           corpus.unigram, exp(corpus.unigram), corpus.bigram, exp(corpus.bigram));
  print_passes(&corpus);
  smoe_corpus_close(&corpus);
  return SMOE_OK;
}

static smoe_status check(const void *values, const smoe_arguments *arguments) {
  const options *o = values;
  SMOE_CHECK(arguments->n + o->own[SMOE_TRAIN].n + o->own[SMOE_VALID].n + o->own[SMOE_TEST].n > 0,
             SMOE_ERR_CONFIG, "prepare: no text is named; see prepare --help");
  SMOE_CHECK(o->output, SMOE_ERR_CONFIG, "prepare: -o CORPUS.h5 is missing; see prepare --help");
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
  wanted.coverage = o->coverage;
  wanted.sample_bytes = o->sample_mib << 20;
  wanted.separator = o->separator;
  wanted.field = o->field;
  wanted.dedup = o->dedup;
  wanted.raw_bytes = 2 * o->raw;
  for (int s = 0; s < SMOE_SPLITS; s++) wanted.own[s] = (smoe_inputs){o->own[s].word, (int)o->own[s].n};
  SMOE_TRY(smoe_prepare(&wanted, arguments->word, arguments->n));
  return print_corpus(o->output);
}

const smoe_command smoe_command_prepare = {
    .name = "prepare",
    .arguments = "[TEXT...] -o CORPUS.h5",
    .title = "make a corpus from text files or directories",
    .text =
        "Make a corpus from text files and directories (read recursively, in sorted order, without hidden "
        "files): plain text in UTF-8, or JSON objects with a text field (.jsonl, .json), also compressed "
        "(gzip, "
        "zstd, xz, bzip2). Or from token files (.bin): shards of llm.c, Megatron's with their .idx, raw ids "
        "(--raw). Serial: one rank does it.",
    .after =
        "TEXT is divided among the splits by documents, from 50 files on by files. If every file's name has "
        "the "
        "word train, valid (val, validation, dev) or test, files go where their names say; of token files, "
        "those with the words val or test do. What went where is printed. A share may be 0, or 1: a corpus "
        "that "
        "is all test evaluates a model on other text (with --model).",
    .example = "stablemoe prepare texts/ -o corpus.h5 --vocab 8192",
    .serial = true,
    .usage = "texts",
    .min_args = 0,
    .max_args = -1,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .defaults = &DEFAULTS,
    .check = check,
    .run = run,
};
