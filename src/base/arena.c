#include "stablemoe/arena.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT = 64 };

void smoe_arena_measure(smoe_arena *arena, const char *name) {
  *arena = (smoe_arena){.name = name};
}

smoe_status smoe_arena_reserve(smoe_arena *arena) {
  arena->bytes = arena->peak;
  arena->used = 0;
  if (arena->bytes == 0) return SMOE_OK;
  SMOE_CHECK(!smoe_fault("arena.reserve"), SMOE_ERR_MEMORY, "injected fault at arena.reserve");
  void *base =
      mmap(NULL, arena->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  SMOE_CHECK(base != MAP_FAILED, SMOE_ERR_MEMORY,
             "cannot reserve %.2f GiB for the %s arena: %s; use more ranks, a smaller batch or more "
             "micro-batches, or lift the limit on address space (ulimit -v)",
             (double)arena->bytes / (1 << 30), arena->name, strerror(errno));
  arena->base = base;
  return SMOE_OK;
}

void smoe_arena_release(smoe_arena *arena) {
  if (arena->base) munmap(arena->base, arena->bytes);
  *arena = (smoe_arena){.name = arena->name};
}

void *smoe_arena_take(smoe_arena *arena, size_t bytes) {
  const size_t first = arena->used;
  arena->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (arena->used > arena->peak) arena->peak = arena->used;
  if (!arena->base) return NULL;
  if (arena->used > arena->bytes)
    SMOE_PANIC(SMOE_ERR_BUG, "the %s arena was planned with %zu bytes and needs %zu", arena->name,
               arena->bytes, arena->used);
  return arena->base + first;
}

smoe_real *smoe_arena_reals(smoe_arena *arena, size_t n) {
  return smoe_arena_take(arena, n * sizeof(smoe_real));
}

int32_t *smoe_arena_ints(smoe_arena *arena, size_t n) {
  return smoe_arena_take(arena, n * sizeof(int32_t));
}

void smoe_arena_reset(smoe_arena *arena, size_t used) {
#ifndef NDEBUG
  if (arena->base && used < arena->used) memset(arena->base + used, 0xff, arena->used - used);
#endif
  arena->used = used;
}

void smoe_arena_forget(const smoe_arena *arena) {
#ifndef NDEBUG
  if (arena->base) memset(arena->base, 0xff, arena->used);
#else
  (void)arena;
#endif
}

void *smoe_alloc(size_t bytes) {
  void *memory = calloc(1, bytes ? bytes : 1);
  if (!memory) SMOE_PANIC(SMOE_ERR_MEMORY, "out of memory: %zu bytes asked for", bytes);
  return memory;
}

void *smoe_realloc(void *memory, size_t bytes) {
  void *larger = realloc(memory, bytes ? bytes : 1);
  if (!larger) SMOE_PANIC(SMOE_ERR_MEMORY, "out of memory: %zu bytes asked for", bytes);
  return larger;
}

char *smoe_strdup(const char *text) {
  const size_t bytes = strlen(text) + 1;
  return memcpy(smoe_alloc(bytes), text, bytes);
}

char *smoe_sprintf(const char *format, ...) {
  va_list args;
  va_start(args, format);
  const int n = vsnprintf(NULL, 0, format, args);
  va_end(args);
  char *text = smoe_alloc((size_t)n + 1);
  va_start(args, format);
  vsnprintf(text, (size_t)n + 1, format, args);
  va_end(args);
  return text;
}

void smoe_free(void *memory) {
  free(memory);
}
