#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "spool.h"
#include "stablemoe/corpus.h"
#include "stablemoe/log.h"
#include "stablemoe/plain_file.h"

uint64_t smoe_tokenizer_hash(const char *kind, const char *model, size_t model_bytes) {
  if (model) return XXH64(model, model_bytes, 0);
  /* Token shards hold no model, but those of llm.c name their vocabulary. */
  const bool known = strcmp(kind, "gpt2") == 0 || strcmp(kind, "llama3") == 0;
  return known ? XXH64(kind, strlen(kind), 1) : 0;
}

smoe_status smoe_corpus_check_tokenizer(const smoe_corpus *corpus, uint64_t tokenizer, uint64_t fingerprint,
                                        const char *model) {
  if (corpus->fingerprint == fingerprint && (!tokenizer || !corpus->tokenizer)) return SMOE_OK;
  if (!tokenizer || !corpus->tokenizer) {
    smoe_warn(
        "'%s' is not the corpus that '%s' was trained on, and %s does not record its tokenizer: results "
        "are right only if both have the same one",
        corpus->path, model, tokenizer ? "the corpus" : "the checkpoint");
    return SMOE_OK;
  }
  SMOE_CHECK(
      corpus->tokenizer == tokenizer, SMOE_ERR_CONFIG,
      "the tokenizer of '%s' is not the one that '%s' was trained with (hash %016llx, not %016llx): its "
      "token ids mean other text. Name a corpus of the model's tokenizer (-c FILE); 'stablemoe prepare "
      "TEXT --model TOKENIZER -o FILE' makes one, where TOKENIZER is the run's tokenizer.model or what "
      "'stablemoe export' wrote",
      corpus->path, model, (unsigned long long)corpus->tokenizer, (unsigned long long)tokenizer);
  return SMOE_OK;
}

smoe_status smoe_corpus_write_tokenizer(const smoe_corpus *corpus, const char *path) {
  if (!corpus->model) {
    unlink(path); /* of an earlier run */
    return SMOE_OK;
  }
  smoe_plain_file file = {0};
  smoe_status status = smoe_plain_create(&file, path, (int64_t)corpus->model_bytes);
  if (status == SMOE_OK) status = smoe_plain_write(&file, corpus->model, corpus->model_bytes);
  if (status == SMOE_OK) status = smoe_plain_finish(&file);
  if (status == SMOE_OK) status = smoe_plain_publish(&file);
  smoe_plain_release(&file);
  return status;
}
