#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "stablemoe/arena.h"
#include "text.h"

/** Directories that were read: a link may lead back to one of them. */
typedef struct visited {
  struct {
    dev_t device;
    ino_t inode;
  } * seen;
  size_t n_seen;
} visited;

/** Whether n is where a list that doubles, from none, is full. */
static bool is_full(size_t n) {
  return (n & (n - 1)) == 0;
}

static void add_file(smoe_text_list *list, char *path, const struct stat *about, bool named, uint8_t split) {
  if (is_full(list->n_files))
    list->file = smoe_realloc(list->file, 2 * (list->n_files + 1) * sizeof *list->file);
  list->file[list->n_files++] = (smoe_text_file){.path = path,
                                                 .bytes = about->st_size,
                                                 .device = about->st_dev,
                                                 .inode = about->st_ino,
                                                 .named = named,
                                                 .split = split};
}

static bool is_new(visited *dirs, const struct stat *about) {
  for (size_t i = 0; i < dirs->n_seen; i++) {
    if (dirs->seen[i].device == about->st_dev && dirs->seen[i].inode == about->st_ino) return false;
  }
  if (is_full(dirs->n_seen))
    dirs->seen = smoe_realloc(dirs->seen, 2 * (dirs->n_seen + 1) * sizeof *dirs->seen);
  dirs->seen[dirs->n_seen].device = about->st_dev;
  dirs->seen[dirs->n_seen++].inode = about->st_ino;
  return true;
}

/** Return true if the first `length` bytes of a name end in one of the extensions, which commas separate. */
static bool has_extension(const char *name, size_t length, const char *extensions) {
  for (const char *one = extensions; one && *one;) {
    const size_t n = strcspn(one, ",");
    if (n > 0 && n <= length && strncmp(name + length - n, one, n) == 0) return true;
    one += n + (one[n] == ',');
  }
  return !extensions;
}

static int not_hidden(const struct dirent *entry) {
  return entry->d_name[0] != '.';
}

/* Not alphasort, which asks the locale. */
static int by_bytes(const struct dirent **a, const struct dirent **b) {
  return strcmp((*a)->d_name, (*b)->d_name);
}

/** What a walk through directories has in hand. */
typedef struct walking {
  smoe_text_list *list;
  visited dirs;
  const char *extensions;
  uint8_t split;
} walking;

static smoe_status walk(walking *w, const char *directory);

static smoe_status walk_entry(walking *w, const char *directory, const char *name) {
  const bool slash = directory[0] && directory[strlen(directory) - 1] == '/';
  char *path = smoe_sprintf("%s%s%s", directory, slash ? "" : "/", name);
  struct stat about;
  smoe_status status = SMOE_OK;
  bool kept = false;
  if (stat(path, &about)) {
    /* A link to nowhere is common and no text. */
    if (errno != ENOENT && errno != ELOOP)
      status = SMOE_FAIL(SMOE_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  } else if (S_ISDIR(about.st_mode)) {
    if (is_new(&w->dirs, &about)) status = walk(w, path);
  } else if (S_ISREG(about.st_mode) && (has_extension(name, strlen(name), w->extensions) ||
                                        has_extension(name, smoe_stream_stem(name), w->extensions))) {
    add_file(w->list, path, &about, false, w->split);
    kept = true;
  }
  if (!kept) smoe_free(path);
  return status;
}

static smoe_status walk(walking *w, const char *directory) {
  struct dirent **entries;
  const int n = scandir(directory, &entries, not_hidden, by_bytes);
  SMOE_CHECK(n >= 0, SMOE_ERR_IO, "cannot read the directory '%s': %s", directory, strerror(errno));
  smoe_status status = SMOE_OK;
  for (int i = 0; i < n; i++) {
    if (status == SMOE_OK) status = walk_entry(w, directory, entries[i]->d_name);
    smoe_free(entries[i]); /* memory of the C library */
  }
  smoe_free(entries);
  return status;
}

smoe_status smoe_text_list_add(smoe_text_list *list, const char *path, const char *extensions,
                               uint8_t split) {
  struct stat about;
  SMOE_CHECK(stat(path, &about) == 0, SMOE_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  if (S_ISDIR(about.st_mode)) {
    walking w = {.list = list, .extensions = extensions, .split = split};
    is_new(&w.dirs, &about);
    const smoe_status status = walk(&w, path);
    smoe_free(w.dirs.seen);
    return status;
  }
  SMOE_CHECK(S_ISREG(about.st_mode), SMOE_ERR_IO,
             "'%s' is neither a regular file nor a directory; text is read more than once, so write it to a "
             "file first",
             path);
  add_file(list, smoe_strdup(path), &about, true, split);
  return SMOE_OK;
}

static int by_inode(const void *a, const void *b) {
  const smoe_text_file *x = *(smoe_text_file *const *)a, *y = *(smoe_text_file *const *)b;
  if (x->device != y->device) return x->device < y->device ? -1 : 1;
  if (x->inode != y->inode) return x->inode < y->inode ? -1 : 1;
  return x < y ? -1 : x > y;
}

static bool has_ending(const char *path) {
  const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
  return strchr(name + 1, '.') != NULL;
}

/** Of two names of one file, keep what is known by both in the first. */
static smoe_status merge(smoe_text_file *first, smoe_text_file *second) {
  SMOE_CHECK(first->split == second->split, SMOE_ERR_CONFIG,
             "'%s' and '%s' are the same file, and are given to two splits", first->path, second->path);
  if (has_ending(second->path) && !has_ending(first->path)) {
    char *path = first->path;
    first->path = second->path;
    second->path = path;
  }
  first->named |= second->named;
  smoe_free(second->path);
  second->path = NULL;
  return SMOE_OK;
}

smoe_status smoe_text_list_unique(smoe_text_list *list, size_t *dropped) {
  *dropped = 0;
  if (list->n_files == 0) return SMOE_OK;
  smoe_text_file **order = smoe_alloc(list->n_files * sizeof *order);
  for (size_t i = 0; i < list->n_files; i++) order[i] = &list->file[i];
  qsort(order, list->n_files, sizeof *order, by_inode);
  smoe_status status = SMOE_OK;
  smoe_text_file *first = order[0];
  for (size_t i = 1; i < list->n_files && status == SMOE_OK; i++) {
    const bool same = order[i]->device == first->device && order[i]->inode == first->inode;
    if (same)
      status = merge(first, order[i]);
    else
      first = order[i];
  }
  smoe_free(order);
  size_t n = 0;
  for (size_t i = 0; i < list->n_files; i++)
    if (list->file[i].path) list->file[n++] = list->file[i];
  *dropped = list->n_files - n;
  list->n_files = n;
  return status;
}

void smoe_text_list_free(smoe_text_list *list) {
  for (size_t i = 0; i < list->n_files; i++) smoe_free(list->file[i].path);
  smoe_free(list->file);
  *list = (smoe_text_list){0};
}
