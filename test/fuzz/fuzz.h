/** What the fuzz harnesses share. A harness is one file: fuzz_start, fuzz_seeds and fuzz_one. */
#ifndef STABLEMOE_FUZZ_H
#define STABLEMOE_FUZZ_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/status.h"

/** Once, before the first input. */
void fuzz_start(int *argc, char ***argv);

/** Inputs to begin with: each is given to fuzz_seed. */
void fuzz_seeds(void);

/** One input. */
void fuzz_one(const uint8_t *data, size_t size);

/** Save an input that the search begins with. */
void fuzz_seed(const char *name, const void *data, size_t size);

/** A literal as a seed. */
#define FUZZ_SEED(name, text) fuzz_seed((name), (text), sizeof(text) - 1)

/** A path in a directory of this process; memory of smoe_alloc. */
char *fuzz_path(const char *name);

void fuzz_write(const char *path, const void *data, size_t size);

/** Contents of a file, in memory of smoe_alloc, with a NUL behind them. */
char *fuzz_read(const char *path, size_t *size);

/** What must hold for every input. */
#define FUZZ_CHECK(condition)                                                                                \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      fprintf(stderr, "%s:%d: does not hold: %s; last report: %s\n", __FILE__, __LINE__, #condition,         \
              smoe_last_error());                                                                            \
      abort();                                                                                               \
    }                                                                                                        \
  } while (0)

/** Where a panic with this code goes instead of ending the run; any other panic is a finding. */
extern jmp_buf fuzz_panicked;
extern int fuzz_panic_code;

#endif
