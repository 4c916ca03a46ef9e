/** Memory: planned once, taken once, never freed piece by piece.
 *
 *  An arena is one aligned slab with a cursor. The same layout code runs twice:
 *  first on an arena without memory, which only measures, then on the real one.
 *  So the plan that --dry-run prints is what the run takes.
 *
 *  Pages are reserved, not filled: rows received from other ranks vary with
 *  the routing, the plan reserves their worst case, and the machine gives
 *  memory only to what is touched.
 */
#ifndef STABLEMOE_ARENA_H
#define STABLEMOE_ARENA_H

#include "stablemoe/real.h"
#include "stablemoe/status.h"

typedef struct smoe_arena {
  const char *name; /**< for messages */
  char *base;       /**< NULL while measuring */
  size_t bytes;     /**< size of the slab; 0 while measuring */
  size_t used;      /**< cursor */
  size_t peak;      /**< largest cursor so far: the plan, after measuring */
} smoe_arena;

/** Start measuring. Local. */
void smoe_arena_measure(smoe_arena *arena, const char *name);

/** Reserve the slab that was measured (arena->peak) and set the cursor to 0.
 *
 *  Local.
 *  Errors:  SMOE_ERR_MEMORY with the size asked for and the size there is.
 */
smoe_status smoe_arena_reserve(smoe_arena *arena);

/** Give the slab back. Local. */
void smoe_arena_release(smoe_arena *arena);

/** Take bytes, aligned to 64; NULL while measuring. Going beyond the plan is a panic. Local. */
void *smoe_arena_take(smoe_arena *arena, size_t bytes);

/** Take n reals: smoe_arena_take in units of smoe_real. Local. */
smoe_real *smoe_arena_reals(smoe_arena *arena, size_t n);

/** Take n 32-bit integers. Local. */
int32_t *smoe_arena_ints(smoe_arena *arena, size_t n);

/** Set the cursor back to a value that arena->used had before. Local.
 *
 *  Debug builds fill what is given back with NaN, so that a stale read shows.
 */
void smoe_arena_reset(smoe_arena *arena, size_t used);

/** Say that nothing in the arena will be read before it is written again. Local.
 *
 *  Debug builds fill all that was taken with NaN, so that a stale read shows; others do nothing.
 */
void smoe_arena_forget(const smoe_arena *arena);

/** Zeroed memory outside the arenas, for tables and texts; a panic where there is none. Local. */
void *smoe_alloc(size_t bytes);

/** smoe_alloc'ed memory made larger (or first made, from NULL); new bytes are not zeroed. Local. */
void *smoe_realloc(void *memory, size_t bytes);

/** A copy of a text in memory of smoe_alloc. Local. */
char *smoe_strdup(const char *text);

/** A printf into memory of smoe_alloc. Local. */
char *smoe_sprintf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/** Give back memory of smoe_alloc; NULL is fine. Local. */
void smoe_free(void *memory);

#endif
