/* What disks, cables and copies do to a file. */
#include <string.h>

#include "damage.h"
#include "stablemoe/arena.h"
#include "stablemoe/random.h"

enum { BLOCK = 4096, SECTOR = 512, HEAD = 16384 };

uint64_t damage_draw(damage_dice *dice, uint64_t below) {
  return smoe_random_bits(2022, SMOE_RANDOM_TEST, dice->kind, dice->number << 16 | dice->n_drawn++) % below;
}

/** Change 1 to 8 bytes of the first n. */
static void flip(damage_dice *dice, damage_bytes *file, int64_t n) {
  const uint64_t count = 1 + damage_draw(dice, 8);
  for (uint64_t i = 0; i < count; i++)
    file->byte[damage_draw(dice, (uint64_t)n)] ^= (unsigned char)(1 + damage_draw(dice, 255));
}

void damage_flip(damage_dice *dice, damage_bytes *file) {
  flip(dice, file, file->n);
}

void damage_flip_head(damage_dice *dice, damage_bytes *file) {
  flip(dice, file, file->n < HEAD ? file->n : HEAD);
}

void damage_truncate(damage_dice *dice, damage_bytes *file) {
  file->n = (int64_t)damage_draw(dice, (uint64_t)file->n);
}

void damage_zero_block(damage_dice *dice, damage_bytes *file) {
  const int64_t first = (int64_t)damage_draw(dice, (uint64_t)((file->n + BLOCK - 1) / BLOCK)) * BLOCK;
  memset(file->byte + first, 0, (size_t)(file->n - first < BLOCK ? file->n - first : BLOCK));
}

void damage_noise_sector(damage_dice *dice, damage_bytes *file) {
  const int64_t first = (int64_t)damage_draw(dice, (uint64_t)((file->n + SECTOR - 1) / SECTOR)) * SECTOR;
  for (int64_t i = first; i < file->n && i < first + SECTOR; i++)
    file->byte[i] = (unsigned char)damage_draw(dice, 256);
}

void damage_swap_blocks(damage_dice *dice, damage_bytes *file) {
  unsigned char held[BLOCK];
  const uint64_t n = (uint64_t)(file->n / BLOCK);
  unsigned char *a = file->byte + damage_draw(dice, n) * BLOCK,
                *b = file->byte + damage_draw(dice, n) * BLOCK;
  if (a == b) return;
  memcpy(held, a, BLOCK);
  memcpy(a, b, BLOCK);
  memcpy(b, held, BLOCK);
}

void damage_append(damage_dice *dice, damage_bytes *file) {
  const int64_t more = 1 + (int64_t)damage_draw(dice, 2 * BLOCK);
  file->byte = smoe_realloc(file->byte, (size_t)(file->n + more));
  for (int64_t i = 0; i < more; i++) file->byte[file->n++] = (unsigned char)damage_draw(dice, 256);
}
