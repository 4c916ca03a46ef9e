#include "stablemoe/prepare.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "app.h"
#include "stablemoe/corpus.h"

static const char USAGE[] =
    "usage: stablemoe prepare TEXT... -o CORPUS.h5 [options]\n"
    "\n"
    "Make a corpus from text files and directories (read recursively, in sorted order, without hidden\n"
    "files), or from token shards of llm.c (.bin). Text is UTF-8. Serial: one rank does it.\n"
    "\n"
    "  -o, --output FILE          the corpus; a file of that name is replaced once the new one is whole\n"
    "      --vocab N              pieces of the vocabulary (default 8192)\n"
    "      --tokenizer bpe|unigram\n"
    "                             what to train on the text (default bpe)\n"
    "      --model FILE           take this SentencePiece model, train none\n"
    "      --valid SHARE          of the text for validation (default 0.05)\n"
    "      --test SHARE           of the text for the test (default 0.05)\n"
    "      --seed N               of the choice of documents for the splits (default 1)\n"
    "      --ext LIST             endings of files to take from directories: .py,.txt (default: all text)\n"
    "      --lines                every line is a document (default: every file, cut at blank lines)\n"
    "      --document-bytes N     cut a file at the first blank line past N bytes (default 16384, less\n"
    "                             for little text)\n"
    "  -h, --help                 this text\n"
    "\n"
    "The tokenizer is trained on at most 4 MiB of the training split, spread evenly over it. From 50 files\n"
    "on, all of a file goes to one split. Shards whose names contain val or test are those splits.\n";

enum { VOCAB = 256, TOKENIZER, MODEL, VALID, TEST, SEED, EXT, LINES, DOCUMENT_BYTES };

static const struct option LONG[] = {{"output", required_argument, NULL, 'o'},
                                     {"vocab", required_argument, NULL, VOCAB},
                                     {"tokenizer", required_argument, NULL, TOKENIZER},
                                     {"model", required_argument, NULL, MODEL},
                                     {"valid", required_argument, NULL, VALID},
                                     {"test", required_argument, NULL, TEST},
                                     {"seed", required_argument, NULL, SEED},
                                     {"ext", required_argument, NULL, EXT},
                                     {"lines", no_argument, NULL, LINES},
                                     {"document-bytes", required_argument, NULL, DOCUMENT_BYTES},
                                     {"help", no_argument, NULL, 'h'},
                                     {0}};

static smoe_status set_kind(smoe_prepare_options *options, const char *name) {
  const bool bpe = strcmp(name, "bpe") == 0;
  SMOE_CHECK(bpe || strcmp(name, "unigram") == 0, SMOE_ERR_CONFIG, "--tokenizer %s: expected bpe or unigram",
             name);
  options->kind = bpe ? SMOE_BPE : SMOE_UNIGRAM;
  return SMOE_OK;
}

static smoe_status set_number(smoe_prepare_options *options, int option, const char *text) {
  int64_t value = 0;
  switch (option) {
  case VOCAB:
    SMOE_TRY(smoe_app_integer("--vocab", text, 1, INT32_MAX, &value));
    options->vocabulary = (int)value;
    return SMOE_OK;
  case SEED:
    SMOE_TRY(smoe_app_integer("--seed", text, 0, INT64_MAX, &value));
    options->seed = (uint64_t)value;
    return SMOE_OK;
  case DOCUMENT_BYTES:
    return smoe_app_integer("--document-bytes", text, 1, INT32_MAX, &options->document_bytes);
  case VALID:
    return smoe_app_real("--valid", text, 0.0, 1.0, &options->valid_share);
  default:
    return smoe_app_real("--test", text, 0.0, 1.0, &options->test_share);
  }
}

static smoe_status set_option(smoe_prepare_options *options, int option, const char *text, char **argv) {
  switch (option) {
  case 'o':
    options->output = text;
    return SMOE_OK;
  case MODEL:
    options->model_path = text;
    return SMOE_OK;
  case EXT:
    options->extensions = text;
    return SMOE_OK;
  case LINES:
    options->lines = true;
    return SMOE_OK;
  case TOKENIZER:
    return set_kind(options, text);
  case VOCAB:
  case SEED:
  case DOCUMENT_BYTES:
  case VALID:
  case TEST:
    return set_number(options, option, text);
  default:
    return SMOE_FAIL(SMOE_ERR_CONFIG,
                     "prepare: option '%s' is unknown or lacks its value; see prepare --help",
                     argv[optind - 1]);
  }
}

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

smoe_status smoe_app_prepare(int argc, char **argv) {
  smoe_prepare_options options = smoe_prepare_defaults();
  optind = 1;
  opterr = 0;
  for (int c; (c = getopt_long(argc, argv, "o:h", LONG, NULL)) != -1;) {
    if (c == 'h') {
      fputs(USAGE, stdout);
      return SMOE_OK;
    }
    SMOE_TRY(set_option(&options, c, optarg, argv));
  }
  SMOE_CHECK(optind < argc, SMOE_ERR_CONFIG, "prepare: no text is named; see prepare --help");
  SMOE_CHECK(options.output, SMOE_ERR_CONFIG, "prepare: -o CORPUS.h5 is missing; see prepare --help");
  SMOE_TRY(smoe_prepare(&options, (const char *const *)(argv + optind), argc - optind));
  return print_corpus(options.output);
}
