/* metrics.csv as a killed run may have left it: after a resume no later update stands in it. */
#include "stablemoe/metrics.h"

#include <unistd.h>

#include "fuzz.h"

static char *path, *directory, *beside;
static const smoe_objective objective;
static smoe_model model = {.objective = &objective};

void fuzz_start(int *argc, char ***argv) {
  (void)argc, (void)argv;
  path = fuzz_path("metrics.csv");
  directory = fuzz_path(".");
  beside = fuzz_path("metrics-1.csv");
  model.n_moe = 1;
  model.params.n_experts = 4;
}

void fuzz_seeds(void) {
  static const char seed[] = "\x05update,stage,tokens\n1,1,2\n2,1,3\n5,1,4\n6,2,5\n7,2,6";
  FUZZ_SEED("table", seed);
  FUZZ_SEED("columns", "\x05loss,update\n1,1\n");
  FUZZ_SEED("removed", "\x05update,gone,loss\n1,2,3\n2,,\n3\n4,1,2\n");
  FUZZ_SEED("zeros", "\x02update\n1\n2\n\0\0\0\0\n3\n");
}

void fuzz_one(const uint8_t *data, size_t size) {
  if (size == 0) return;
  const int64_t update = data[0];
  fuzz_write(path, data + 1, size - 1);
  smoe_metrics metrics;
  FUZZ_CHECK(smoe_metrics_open(&metrics, directory, &model, update) == SMOE_OK);
  smoe_metrics_close(&metrics);
  unlink(beside); /* what the new file could not hold */
  size_t n;
  char *text = fuzz_read(path, &n);
  FUZZ_CHECK(n > 0 && text[n - 1] == '\n');
  FUZZ_CHECK(strncmp(text, "update,stage,tokens", 19) == 0);
  int64_t before = 0;
  for (const char *line = memchr(text, '\n', n); line && line + 1 < text + n;
       line = memchr(line, '\n', (size_t)(text + n - line))) {
    line++;
    char *end;
    const int64_t number = strtoll(line, &end, 10);
    FUZZ_CHECK(end > line && number > before && number <= update);
    before = number;
  }
  smoe_free(text);
}
