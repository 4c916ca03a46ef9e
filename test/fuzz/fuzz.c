#include "fuzz.h"

#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

jmp_buf fuzz_panicked;
int fuzz_panic_code;

static char directory[512];
static const char *seed_directory;

static void panicked(int code) {
  if (code == 0 || code != fuzz_panic_code) abort();
  longjmp(fuzz_panicked, 1);
}

char *fuzz_path(const char *name) {
  return smoe_sprintf("%s/%s", directory, name);
}

void fuzz_write(const char *path, const void *data, size_t size) {
  FILE *stream = fopen(path, "wb");
  if (!stream || fwrite(data, 1, size, stream) != size || fclose(stream)) {
    perror(path);
    _exit(99);
  }
}

char *fuzz_read(const char *path, size_t *size) {
  FILE *stream = fopen(path, "rb");
  if (!stream || fseek(stream, 0, SEEK_END)) {
    perror(path);
    _exit(99);
  }
  *size = (size_t)ftell(stream);
  rewind(stream);
  char *data = smoe_alloc(*size + 1);
  if (fread(data, 1, *size, stream) != *size) _exit(99);
  fclose(stream);
  return data;
}

void fuzz_seed(const char *name, const void *data, size_t size) {
  char *path = smoe_sprintf("%s/%s", seed_directory, name);
  fuzz_write(path, data, size);
  smoe_free(path);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  const char *root = getenv("TMPDIR");
  snprintf(directory, sizeof directory, "%s/fuzz-XXXXXX", root ? root : "/tmp");
  if (!mkdtemp(directory)) _exit(99);
  fuzz_start(argc, argv);
  smoe_panic_setup(panicked, 0, 1);
  seed_directory = getenv("STABLEMOE_FUZZ_SEEDS");
  if (seed_directory) {
    fuzz_seeds();
    _exit(0);
  }
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_panic_code = 0;
  fuzz_one(data, size);
  return 0;
}
