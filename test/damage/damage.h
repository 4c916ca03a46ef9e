/** Random damages of a file, and what a reader makes of each: refused, the same values, or worse.
 *
 *  Each case runs in a child: a crash or a hang is a result like another one. All choices are
 *  functions of (kind, case), so that `<test> <kind> <case>` repeats a single one and keeps the file.
 *  `<test> --every N` takes only every N-th case of each kind.
 */
#ifndef STABLEMOE_TEST_DAMAGE_H
#define STABLEMOE_TEST_DAMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "stablemoe/h5.h"

/** A file in memory: what a damage changes. */
typedef struct damage_bytes {
  unsigned char *byte;
  int64_t n;
} damage_bytes;

/** What to draw for a case from: the n-th call of a case gives the n-th number. */
typedef struct damage_dice {
  uint32_t kind;
  uint64_t number, n_drawn;
} damage_dice;

uint64_t damage_draw(damage_dice *dice, uint64_t below);

typedef struct damage_kind {
  const char *name;
  int n_cases;
  /** One of these. bytes: of the file as a disk has it. file: through HDF5, the file open for
   *  writing; target says which object is to be named (may stay empty).
   */
  void (*bytes)(damage_dice *dice, damage_bytes *file);
  void (*structure)(damage_dice *dice, hid_t file, char target[512]);
  bool sealed;     /**< structure: sealed again afterwards, so that the reader's own checks have to see it */
  bool may_differ; /**< attributes: a file that is sound, and says something else */
  bool any_words;  /**< a report need not have the target's name */
} damage_kind;

/** What a reader made of a file. */
typedef enum damage_outcome { DAMAGE_SAME = 20, DAMAGE_REFUSED, DAMAGE_DIFFERENT } damage_outcome;

typedef struct damage_test {
  const char *name;
  const char *path; /**< of the sound file */
  const damage_kind *kinds;
  int n_kinds;
  damage_outcome (*read)(const char *path); /**< runs in the child; the report is left in smoe_last_error */
  const char *unsummed;                     /**< dataset that the seal alone protects; NULL */
  int panic_code;                           /**< exit code of a reader that may end the run; 0: it may not */
} damage_test;

/** Run the cases that the command line asks for and print a table; returns how many went wrong. */
int damage_run(const damage_test *test, int argc, char **argv);

/* Damages of bytes. */
void damage_flip(damage_dice *dice, damage_bytes *file);
void damage_flip_head(damage_dice *dice, damage_bytes *file);
void damage_truncate(damage_dice *dice, damage_bytes *file);
void damage_zero_block(damage_dice *dice, damage_bytes *file);
void damage_noise_sector(damage_dice *dice, damage_bytes *file);
void damage_swap_blocks(damage_dice *dice, damage_bytes *file);
void damage_append(damage_dice *dice, damage_bytes *file);

/* Damages of structure. */
void damage_delete(damage_dice *dice, hid_t file, char target[512]);
void damage_rename(damage_dice *dice, hid_t file, char target[512]);
void damage_reshape(damage_dice *dice, hid_t file, char target[512]);
void damage_retype(damage_dice *dice, hid_t file, char target[512]);
void damage_huge(damage_dice *dice, hid_t file, char target[512]);
void damage_replace(damage_dice *dice, hid_t file, char target[512]);
void damage_relink(damage_dice *dice, hid_t file, char target[512]);
void damage_value(damage_dice *dice, hid_t file, char target[512]);
void damage_swap_rows(damage_dice *dice, hid_t file, char target[512]);
void damage_attribute_delete(damage_dice *dice, hid_t file, char target[512]);
void damage_attribute_type(damage_dice *dice, hid_t file, char target[512]);
void damage_attribute_value(damage_dice *dice, hid_t file, char target[512]);

#endif
