#include "files.h"

#include "damage/damage.h"

enum { STEPS_MAX = 4 };

static char *sound, *path;
static size_t sound_bytes;

static const uint8_t *next;
static size_t n_left, n_drawn;

/** What bytes.c draws at random comes from the input here, and from a count behind its end. */
uint64_t damage_draw(damage_dice *dice, uint64_t below) {
  (void)dice;
  uint64_t value = n_drawn++;
  if (n_left >= 2) {
    value = next[0] | (uint64_t)next[1] << 8;
    next += 2;
    n_left -= 2;
  }
  return below ? value % below : 0;
}

typedef void step(damage_dice *dice, hid_t file, char target[512]);

/* The first LAST_STEPS leave what the others cannot work on. */
enum { LAST_STEPS = 3 };
static step *const steps[] = {damage_retype,           damage_huge,           damage_replace,
                              damage_delete,           damage_rename,         damage_reshape,
                              damage_relink,           damage_value,          damage_swap_rows,
                              damage_attribute_delete, damage_attribute_type, damage_attribute_value};
enum { N_STEPS = sizeof steps / sizeof *steps };

void files_take(const char *from) {
  sound = fuzz_read(from, &sound_bytes);
  path = fuzz_path("damaged.h5");
}

const char *files_damage(const uint8_t *data, size_t size) {
  fuzz_write(path, sound, sound_bytes);
  next = data;
  n_left = size;
  n_drawn = 0;
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_LATEST);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  const hid_t file = H5Fopen(path, H5F_ACC_RDWR, access);
  H5Pclose(access);
  FUZZ_CHECK(file >= 0);
  size_t kind = N_STEPS;
  for (int i = 0; i < STEPS_MAX && n_left > 0 && kind >= LAST_STEPS; i++) {
    char target[512];
    damage_dice dice = {0};
    kind = damage_draw(&dice, N_STEPS);
    steps[kind](&dice, file, target);
  }
  H5Fclose(file);
  FUZZ_CHECK(smoe_h5_seal(path) == SMOE_OK);
  return path;
}

void files_seeds(void) {
  for (uint8_t kind = 0; kind < N_STEPS; kind++) {
    const uint8_t alone[] = {kind, 0, 7, 0, 3, 0, 5, 0}, after[] = {7, 0, 3, 0, 9, 0, kind, 0, 40, 0, 1, 0};
    char name[16];
    snprintf(name, sizeof name, "alone%d", kind);
    fuzz_seed(name, alone, sizeof alone);
    snprintf(name, sizeof name, "after%d", kind);
    fuzz_seed(name, after, sizeof after);
  }
}
