#include "stablemoe/memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/timer.h"

enum { LINE_BYTES = 4096 };
static const double MIB = 1 << 20;

/* What the two versions of memory cgroups call the same. */
typedef struct controller {
  const char *limit[2]; /* the hard one; one above which a process is only slowed down, NULL: none */
  const char *usage, *cache[2];
} controller;

static const controller VERSION_1 = {
    {"memory.limit_in_bytes", NULL}, "memory.usage_in_bytes", {"total_inactive_file", "total_active_file"}};
static const controller VERSION_2 = {
    {"memory.max", "memory.high"}, "memory.current", {"inactive_file", "active_file"}};

static FILE *open_below(const char *root, const char *directory, const char *name) {
  char *path = smoe_sprintf("%s%s/%s", root, directory, name);
  FILE *file = fopen(path, "r");
  smoe_free(path);
  return file;
}

/* The number that a file holds; infinite where there is none ("max"), or no such file. */
static double read_number(const char *root, const char *directory, const char *name) {
  FILE *file = name ? open_below(root, directory, name) : NULL;
  if (!file) return INFINITY;
  double value;
  if (fscanf(file, "%lf", &value) != 1) value = INFINITY;
  fclose(file);
  return value;
}

/* The sum of the lines "<key> <number>" of a file with one of two keys; 0 where there are none. */
static double read_keys(const char *root, const char *directory, const char *name, const char *const key[2]) {
  FILE *file = open_below(root, directory, name);
  if (!file) return 0;
  char word[128];
  double value, sum = 0;
  while (fscanf(file, "%127s %lf", word, &value) == 2)
    if (strcmp(word, key[0]) == 0 || strcmp(word, key[1]) == 0) sum += value;
  fclose(file);
  return sum;
}

static void take_less(smoe_memory *memory, double bytes, const char *limit) {
  if (memory->bytes > 0 && memory->bytes <= bytes) return;
  memory->bytes = fmax(bytes, 1); /* 0 would be unknown */
  snprintf(memory->limit, sizeof memory->limit, "%s", limit);
}

/* One cgroup: its directory, and what it is called. */
static void take_level(smoe_memory *memory, const char *root, const controller *c, const char *directory,
                       const char *name) {
  const double limit =
      fmin(read_number(root, directory, c->limit[0]), read_number(root, directory, c->limit[1]));
  const double usage = read_number(root, directory, c->usage);
  /* Version 1 says "none" by a number beyond any memory. */
  if (!(limit < 0x1p60) || !isfinite(usage)) return;
  const double cache = fmin(usage, read_keys(root, directory, "memory.stat", c->cache));
  char text[320];
  snprintf(text, sizeof text, "the cgroup '%.200s' (limit %.0f MiB)", name[0] ? name : "/", limit / MIB);
  take_less(memory, fmax(0, limit - usage + cache), text);
}

/* A cgroup and all above it, up to where the hierarchy is mounted. path: below the mount, "" or "/a/b". */
static void take_levels(smoe_memory *memory, const char *root, const controller *c, const char *mount,
                        const char *path) {
  char *level = smoe_strdup(path);
  for (;;) {
    char *directory = smoe_sprintf("%s%s", mount, level);
    take_level(memory, root, c, directory, level);
    smoe_free(directory);
    char *slash = strrchr(level, '/');
    if (!slash) break;
    *slash = '\0';
  }
  smoe_free(level);
}

/* Whether a word is in a list with commas. */
static bool has_word(const char *list, const char *word) {
  const size_t length = strlen(word);
  for (const char *at = list; (at = strstr(at, word)); at += length)
    if ((at == list || at[-1] == ',') && (at[length] == ',' || at[length] == '\0')) return true;
  return false;
}

/* The path of this process in a hierarchy: lines "3:memory:/a/b", or "0::/a/b" for version 2. False: in none. */
static bool find_path(const char *root, bool second, char path[LINE_BYTES]) {
  FILE *file = open_below(root, "/proc/self", "cgroup");
  if (!file) return false;
  char line[LINE_BYTES];
  bool found = false;
  while (!found && fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = '\0';
    char *controllers = strchr(line, ':');
    char *at = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!at) continue;
    *controllers++ = '\0';
    *at++ = '\0';
    found = second ? strcmp(line, "0") == 0 && !controllers[0] : has_word(controllers, "memory");
    if (found) snprintf(path, LINE_BYTES, "%s", at);
  }
  fclose(file);
  return found;
}

/* A line of mountinfo: "31 30 0:28 /in/it /sys/fs/cgroup rw - cgroup2 cgroup2 rw,memory". A mount shows its hierarchy
 * from /in/it on; in a container the path of a process may be one that is not shown there. */
static void take_mount(smoe_memory *memory, const char *root, char *line) {
  char inside[LINE_BYTES], mount[LINE_BYTES], type[64], options[LINE_BYTES], path[LINE_BYTES];
  const char *dash = strstr(line, " - ");
  if (!dash || sscanf(line, "%*s %*s %*s %4095s %4095s", inside, mount) != 2) return;
  if (sscanf(dash + 3, "%63s %*s %4095s", type, options) != 2) return;
  const bool second = strcmp(type, "cgroup2") == 0;
  if (!second && (strcmp(type, "cgroup") != 0 || !has_word(options, "memory"))) return;
  if (!find_path(root, second, path)) return;
  const size_t shown = strcmp(inside, "/") == 0 ? 0 : strlen(inside);
  const char *below = path;
  if (strncmp(path, inside, shown) != 0 || (path[shown] != '/' && path[shown] != '\0') || strstr(path, ".."))
    below = "";
  else
    below += shown;
  if (strcmp(below, "/") == 0) below = "";
  take_levels(memory, root, second ? &VERSION_2 : &VERSION_1, mount, below);
}

static void take_cgroups(smoe_memory *memory, const char *root) {
  FILE *file = open_below(root, "/proc/self", "mountinfo");
  if (!file) return;
  char line[LINE_BYTES];
  while (fgets(line, sizeof line, file)) take_mount(memory, root, line);
  fclose(file);
}

static double number_of(const char *variable) {
  const char *text = getenv(variable);
  const double value = text ? strtod(text, NULL) : 0;
  return value > 0 && isfinite(value) ? value : 0;
}

/* Not every cluster enforces it by cgroups; those that do not end the job when they notice. */
static void take_slurm(smoe_memory *memory) {
  double mib = number_of("SLURM_MEM_PER_NODE");
  const char *option = "--mem";
  if (mib == 0) {
    mib = number_of("SLURM_MEM_PER_CPU") * number_of("SLURM_CPUS_ON_NODE");
    option = "--mem-per-cpu, for all CPUs of it here";
  }
  if (mib == 0) return;
  char text[320];
  snprintf(text, sizeof text, "the Slurm job (%s: %.0f MiB)", option, mib);
  take_less(memory, fmax(0, mib * MIB - smoe_resident_memory()), text);
}

smoe_memory smoe_memory_free_below(const char *root) {
  smoe_memory memory = {.limit = "the free memory of this machine"};
  FILE *file = open_below(root, "/proc", "meminfo");
  if (file) {
    char line[LINE_BYTES];
    double kib;
    while (fgets(line, sizeof line, file))
      if (sscanf(line, "MemAvailable: %lf", &kib) == 1) memory.bytes = 1024 * kib;
    fclose(file);
  }
  take_cgroups(&memory, root);
  take_slurm(&memory);
  return memory;
}

smoe_memory smoe_memory_free(void) {
  return smoe_memory_free_below("");
}
