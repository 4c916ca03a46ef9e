/* The front of a file: nothing but the seal that was written passes. */
#include "fuzz.h"
#include "stablemoe/h5.h"

static char *path, *sound;
static size_t sound_bytes;

void fuzz_start(int *argc, char ***argv) {
  (void)argc, (void)argv;
  path = fuzz_path("seal.h5");
  hid_t file;
  const int64_t n[] = {5000};
  static float values[5000];
  FUZZ_CHECK(smoe_h5_create(&file, path, NULL) == SMOE_OK);
  for (int i = 0; i < 3; i++) {
    char name[32];
    snprintf(name, sizeof name, "param/p%d", i);
    FUZZ_CHECK(smoe_h5_dataset(file, name, H5T_IEEE_F32LE, 1, n) == SMOE_OK);
    FUZZ_CHECK(smoe_h5_write(file, name, H5T_NATIVE_FLOAT, values, 0, n[0]) == SMOE_OK);
  }
  FUZZ_CHECK(smoe_h5_close(file) == SMOE_OK);
  sound = fuzz_read(path, &sound_bytes);
}

void fuzz_seeds(void) {
  fuzz_seed("sound", sound, strlen(sound));
  FUZZ_SEED("signature", "\x89HDF\r\n\x1a\n");
}

/** The input in front of the sound file. */
void fuzz_one(const uint8_t *data, size_t size) {
  if (size > SMOE_H5_SEAL_BYTES) size = SMOE_H5_SEAL_BYTES;
  char *bytes = smoe_alloc(sound_bytes);
  memcpy(bytes, sound, sound_bytes);
  memset(bytes, 0, SMOE_H5_SEAL_BYTES);
  if (size) memcpy(bytes, data, size);
  fuzz_write(path, bytes, sound_bytes);
  const bool same = memcmp(bytes, sound, SMOE_H5_SEAL_BYTES) == 0;
  const bool foreign = memcmp(bytes, "\x89HDF\r\n\x1a\n", 8) == 0;
  FUZZ_CHECK((smoe_h5_check_seal(path) == SMOE_OK) == (same || foreign));
  smoe_free(bytes);
}
