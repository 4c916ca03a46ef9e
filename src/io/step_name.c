#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "part_file.h"
#include "stablemoe/arena.h"

char *smoe_step_path(const char *directory, int64_t update) {
  return smoe_sprintf("%s/step-%09lld.h5", directory, (long long)update);
}

int64_t smoe_step_of_name(const char *name) {
  if (strncmp(name, "step-", 5) != 0) return -1;
  const size_t digits = strspn(name + 5, "0123456789");
  if (digits < 9 || digits > 18 || strcmp(name + 5 + digits, ".h5") != 0) return -1;
  return strtoll(name + 5, NULL, 10);
}

static int newest_first(const void *a, const void *b) {
  const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x < y) - (x > y);
}

int64_t *smoe_step_list(const char *directory, size_t *n) {
  size_t room = 16;
  int64_t *step = smoe_alloc(room * sizeof *step);
  *n = 0;
  DIR *entries = opendir(directory);
  for (struct dirent *entry; entries && (entry = readdir(entries));) {
    const int64_t update = smoe_step_of_name(entry->d_name);
    if (update < 0) continue;
    if (*n == room) step = smoe_realloc(step, (room *= 2) * sizeof *step);
    step[(*n)++] = update;
  }
  if (entries) closedir(entries);
  qsort(step, *n, sizeof *step, newest_first);
  return step;
}

void smoe_part_sweep(const char *directory) {
  DIR *entries = opendir(directory);
  for (struct dirent *entry; entries && (entry = readdir(entries));) {
    const size_t length = strlen(entry->d_name);
    if (length <= 5 || strcmp(entry->d_name + length - 5, ".part") != 0) continue;
    char *path = smoe_sprintf("%s/%s", directory, entry->d_name);
    unlink(path);
    smoe_free(path);
  }
  if (entries) closedir(entries);
}
