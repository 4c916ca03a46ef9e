/** A directory for one test, and texts to put into it. */
#ifndef STABLEMOE_TEST_TEMPORARY_H
#define STABLEMOE_TEST_TEMPORARY_H

#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stablemoe/arena.h"
#include "stablemoe/random.h"

static char test_directory[256];
static pid_t test_directory_owner;

static inline int test_remove_one(const char *path, const struct stat *about, int type, struct FTW *where) {
  (void)about, (void)type, (void)where;
  return remove(path);
}

/* A child that exits leaves it to its parent. */
static inline void test_directory_remove(void) {
  if (getpid() == test_directory_owner) nftw(test_directory, test_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/** Make the directory; it goes when the program ends. */
static inline void test_directory_make(void) {
  const char *root = getenv("TMPDIR");
  snprintf(test_directory, sizeof test_directory, "%s/smoe-test-XXXXXX", root ? root : "/tmp");
  if (!mkdtemp(test_directory)) {
    perror("mkdtemp");
    exit(99);
  }
  test_directory_owner = getpid();
  atexit(test_directory_remove);
}

/** A path in it; each call has memory of its own. */
static inline const char *test_path(const char *name) {
  return smoe_sprintf("%s/%s", test_directory, name);
}

/** Write a file in it; returns its path. */
static inline const char *test_file(const char *name, const void *data, size_t bytes) {
  const char *path = test_path(name);
  FILE *stream = fopen(path, "wb");
  if (!stream || fwrite(data, 1, bytes, stream) != bytes || fclose(stream)) {
    perror(path);
    exit(99);
  }
  return path;
}

/** Python-like text of about so many bytes, NUL-terminated; another for each number. */
static inline char *test_source(uint64_t number, size_t bytes) {
  static const char *const words[] = {"self",   "value",  "return", "def",   "class", "tokens",
                                      "expert", "index",  "range",  "print", "while", "None",
                                      "batch",  "router", "length", "append"};
  char *text = smoe_alloc(bytes + 256);
  size_t used = 0;
  for (uint64_t line = 0; used < bytes; line++) {
    const uint64_t r = smoe_random_bits(number, SMOE_RANDOM_TEST, 0, line);
    const char *a = words[r & 15], *b = words[(r >> 4) & 15], *c = words[(r >> 8) & 15];
    const int indent = 4 * (int)((r >> 12) & 3), n = (int)((r >> 16) & 1023);
    if (((r >> 14) & 7) == 0)
      used += (size_t)sprintf(text + used, "\n\ndef %s_%s(%s, x%d):\n", a, b, c, n);
    else
      used += (size_t)sprintf(text + used, "%*s%s = %s[%d] + %s  # \xc3\xa9t\xc3\xa9\t%s\n", indent, "", a, b,
                              n, c, a);
  }
  return text;
}

#endif
