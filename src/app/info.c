#include <getopt.h>
#include <stdio.h>

#include "app.h"
#include "stablemoe/checkpoint.h"
#include "stablemoe/corpus.h"
#include "stablemoe/inspect.h"
#include "stablemoe/routing_log.h"

static const char USAGE[] =
    "usage: stablemoe info FILE [--verify]\n"
    "\n"
    "What a checkpoint, a corpus or a routing log holds.\n"
    "\n"
    "      --verify   check every part of it against its checksum, and name what is damaged\n"
    "  -h, --help     this text\n";

static smoe_status print_corpus(const char *path) {
  smoe_corpus corpus;
  SMOE_TRY(smoe_corpus_open_local(&corpus, path));
  static const char *const NAMES[] = {"train", "valid", "test"};
  printf("%s: corpus, vocabulary %d, %s\n", path, corpus.vocabulary,
         corpus.model ? "tokenizer inside" : "no tokenizer");
  printf("  %-6s %12s %14s %14s\n", "split", "documents", "tokens", "bytes");
  for (int s = 0; s < SMOE_SPLITS; s++)
    printf("  %-6s %12lld %14lld %14lld\n", NAMES[s], (long long)corpus.n_documents[s],
           (long long)corpus.n_tokens[s], (long long)corpus.n_bytes[s]);
  printf("  validation cross entropy, add-one: unigram %.4f, bigram %.4f nats per token\n", corpus.unigram,
         corpus.bigram);
  printf("  fingerprint %016llx\n", (unsigned long long)corpus.fingerprint);
  smoe_corpus_close(&corpus);
  return SMOE_OK;
}

static smoe_status info(const char *path, bool verify) {
  smoe_file_kind kind;
  SMOE_TRY(smoe_file_kind_of(path, &kind));
  switch (kind) {
  case SMOE_FILE_CHECKPOINT:
    return verify ? smoe_checkpoint_verify(path) : smoe_checkpoint_print(path);
  case SMOE_FILE_ROUTING: /* its seal covers all of it, and every reader checks that */
    return smoe_routing_log_print(path);
  case SMOE_FILE_CORPUS:
    if (verify) SMOE_TRY(smoe_corpus_verify(path));
    return print_corpus(path);
  }
  return SMOE_OK;
}

smoe_status smoe_app_info(const smoe_group *group, int argc, char **argv) {
  enum { VERIFY = 256 };
  static const struct option LONG[] = {
      {"verify", no_argument, NULL, VERIFY}, {"help", no_argument, NULL, 'h'}, {0}};
  bool verify = false;
  optind = 1;
  opterr = 0;
  for (int c; (c = getopt_long(argc, argv, "h", LONG, NULL)) != -1;) {
    if (c == 'h') {
      if (group->rank == 0) fputs(USAGE, stdout);
      return SMOE_OK;
    }
    SMOE_CHECK(c == VERIFY, SMOE_ERR_CONFIG, "info: option '%s' is unknown; see info --help",
               argv[optind - 1]);
    verify = true;
  }
  SMOE_CHECK(optind + 1 == argc, SMOE_ERR_CONFIG, "info takes one FILE; see info --help");
  const smoe_status status = group->rank == 0 ? info(argv[optind], verify) : SMOE_OK;
  return smoe_group_agree(group, status);
}
