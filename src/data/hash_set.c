#include "hash_set.h"

#include "stablemoe/arena.h"

enum { FIRST_ROOM = 1 << 10 };

/** The slot of a hash, or the empty one where it belongs. room is a power of two. */
static uint64_t *slot_of(uint64_t *slot, size_t room, uint64_t hash) {
  size_t i = (size_t)hash & (room - 1);
  while (slot[i] && slot[i] != hash) i = (i + 1) & (room - 1);
  return &slot[i];
}

static void grow(smoe_hash_set *set) {
  const size_t room = set->room ? 2 * set->room : FIRST_ROOM;
  uint64_t *slot = smoe_alloc(room * sizeof *slot);
  for (size_t i = 0; i < set->room; i++)
    if (set->slot[i]) *slot_of(slot, room, set->slot[i]) = set->slot[i];
  smoe_free(set->slot);
  set->slot = slot;
  set->room = room;
}

bool smoe_hash_set_add(smoe_hash_set *set, uint64_t hash) {
  if (hash == 0) hash = 1;
  if (2 * (set->n + 1) > set->room) grow(set);
  uint64_t *slot = slot_of(set->slot, set->room, hash);
  if (*slot) return false;
  *slot = hash;
  set->n++;
  return true;
}

bool smoe_hash_set_has(const smoe_hash_set *set, uint64_t hash) {
  if (hash == 0) hash = 1;
  return set->room && *slot_of(set->slot, set->room, hash);
}

void smoe_hash_set_free(smoe_hash_set *set) {
  smoe_free(set->slot);
  *set = (smoe_hash_set){0};
}
