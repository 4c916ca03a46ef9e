#include <stdio.h>

#include "app.h"
#include "open_model.h"
#include "prepare_images.h"
#include "print_pairs.h"
#include "stablemoe/checkpoint.h"
#include "stablemoe/corpus.h"
#include "stablemoe/inspect.h"
#include "stablemoe/pairs.h"
#include "stablemoe/routing_log.h"

typedef struct options {
  bool verify;
} options;

static const smoe_option OPTIONS[] = {
    {0, "verify", SMOE_OPTION_FLAG, offsetof(options, verify), NULL,
     "check every part of it against its checksum, and name what is damaged"},
};

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
  case SMOE_FILE_PAIRS:
    if (verify) SMOE_TRY(smoe_pairs_verify(path));
    return smoe_app_print_pairs(path);
  case SMOE_FILE_IMAGES:
    if (verify) SMOE_TRY(smoe_images_verify(path));
    return smoe_app_print_images(path);
  }
  return SMOE_OK;
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  char path[4096];
  smoe_app_checkpoint_path(path, sizeof path, arguments->word[0]);
  return info(path, ((const options *)values)->verify);
}

const smoe_command smoe_command_info = {
    .name = "info",
    .arguments = "FILE|RUN",
    .title = "what a checkpoint, corpus or routing log holds",
    .text = "What a checkpoint, a corpus or a routing log holds; of a run directory, its latest checkpoint.",
    .example = "stablemoe info runs/stable/checkpoints/latest --verify",
    .serial = true,
    .usage = "one FILE or run directory",
    .min_args = 1,
    .max_args = 1,
    SMOE_COMMAND_OPTIONS(OPTIONS, options),
    .run = run,
};
