/** Memory that notices what is written beside it: guard words on both sides of every block. */
#ifndef STABLEMOE_TEST_GUARDED_H
#define STABLEMOE_TEST_GUARDED_H

#include <string.h>

#include "harness.h"
#include "stablemoe/arena.h"

enum { GUARD = 64, BLOCKS = 16 };

static struct {
  unsigned char *base;
  size_t bytes;
} blocks[BLOCKS];
static size_t n_blocks;

/** bytes of memory filled with `fill`, guard words on both sides. */
static void *guarded(size_t bytes, int fill) {
  unsigned char *base = smoe_alloc(bytes + 2 * GUARD);
  memset(base, 0x5a, bytes + 2 * GUARD);
  memset(base + GUARD, fill, bytes);
  blocks[n_blocks].base = base;
  blocks[n_blocks++].bytes = bytes;
  return base + GUARD;
}

static void guards_check(const char *name, const char *what) {
  for (size_t b = 0; b < n_blocks; b++)
    for (size_t i = 0; i < GUARD; i++)
      CHECK(blocks[b].base[i] == 0x5a && blocks[b].base[GUARD + blocks[b].bytes + i] == 0x5a,
            "%s: %s writes beside block %zu", name, what, b);
}

static void guards_free(void) {
  while (n_blocks > 0) smoe_free(blocks[--n_blocks].base);
}

#endif
