/** A set of 64-bit hashes. */
#ifndef STABLEMOE_DATA_HASH_SET_H
#define STABLEMOE_DATA_HASH_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Zero-initialised: the empty set. */
typedef struct smoe_hash_set {
  uint64_t *slot; /**< 0: empty */
  size_t n, room;
} smoe_hash_set;

/** Add a hash; returns false if it was there already. Local. */
bool smoe_hash_set_add(smoe_hash_set *set, uint64_t hash);

/** Return true if a hash is there. Local. */
bool smoe_hash_set_has(const smoe_hash_set *set, uint64_t hash);

/** Free it. Local. */
void smoe_hash_set_free(smoe_hash_set *set);

#endif
