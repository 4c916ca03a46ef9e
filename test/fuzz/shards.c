/* Token shards. The first byte says how much of a sound header the input gets. */
#include "data/shards.h"

#include "fuzz.h"
#include "stablemoe/corpus.h"
#include "stablemoe/log.h"

enum { HEADER = 1024 };

static char *path, *valid, *output;

void fuzz_start(int *argc, char ***argv) {
  (void)argc, (void)argv;
  smoe_log_setup(1, true);
  path = fuzz_path("part.bin");
  valid = fuzz_path("part_val.bin");
  output = fuzz_path("corpus.h5");
}

void fuzz_seeds(void) {
  static uint8_t seed[HEADER + 65];
  for (uint8_t way = 0; way < 4; way++) {
    seed[0] = way;
    for (size_t i = 1; i < sizeof seed; i++) seed[i] = i % 2 ? 0 : (uint8_t)i;
    const char name[] = {'w', (char)('0' + way), 0};
    fuzz_seed(name, seed, way ? 65 : sizeof seed);
  }
}

/** 1, 2: whole header of one of the two kinds and the size it has; 3: another size; else as it is. */
static size_t make_shard(uint8_t *shard, const uint8_t *data, size_t size, int way) {
  if (way == 0) {
    memcpy(shard, data, size);
    return size;
  }
  const int bytes = way == 2 ? 4 : 2;
  const int32_t header[3] = {way == 2 ? 20240801 : 20240520, way == 2 ? 7 : 1,
                             way == 3 ? data[0] - 8 : (int32_t)(size / (size_t)bytes)};
  memset(shard, 0, HEADER);
  memcpy(shard, header, sizeof header);
  memcpy(shard + HEADER, data, size);
  return HEADER + size;
}

/** All tokens of what was accepted are in the vocabulary: the reader would end the run. */
static void read_corpus(void) {
  smoe_corpus corpus;
  FUZZ_CHECK(smoe_corpus_open_local(&corpus, output) == SMOE_OK);
  for (int s = 0; s < SMOE_SPLITS; s++) {
    int32_t *tokens = smoe_alloc((size_t)corpus.n_tokens[s] * sizeof *tokens);
    smoe_corpus_read(&corpus, s, 0, (size_t)corpus.n_tokens[s], tokens);
    smoe_free(tokens);
  }
  smoe_corpus_close(&corpus);
  FUZZ_CHECK(smoe_corpus_verify(output) == SMOE_OK);
  remove(output);
}

void fuzz_one(const uint8_t *data, size_t size) {
  if (size < 2 || size > 1 << 16) return;
  uint8_t *shard = smoe_alloc(size + HEADER);
  const size_t bytes = make_shard(shard, data + 1, size - 1, data[0] & 3);
  fuzz_write(path, shard, bytes);
  fuzz_write(valid, shard, bytes);
  const char *inputs[2] = {path, valid};
  smoe_prepare_options options = smoe_prepare_defaults();
  options.output = output;
  options.vocabulary = data[0] & 4 ? 300 : 70000;
  options.test_share = options.valid_share = 0.3;
  const smoe_status status = smoe_prepare(&options, inputs, data[0] & 8 ? 2 : 1);
  FUZZ_CHECK(status == SMOE_OK || smoe_last_error()[0]);
  if (status == SMOE_OK) read_corpus();
  smoe_free(shard);
}
