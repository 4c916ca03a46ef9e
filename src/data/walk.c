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

static void add_file(smoe_text_list *list, char *path, int64_t bytes, bool named) {
  if (is_full(list->n_files))
    list->file = smoe_realloc(list->file, 2 * (list->n_files + 1) * sizeof *list->file);
  list->file[list->n_files++] = (smoe_text_file){.path = path, .bytes = bytes, .named = named};
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

/** Whether the name ends in one of the extensions, which stand between commas. */
static bool has_extension(const char *name, const char *extensions) {
  const size_t length = strlen(name);
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

static smoe_status walk(smoe_text_list *list, visited *dirs, const char *directory, const char *extensions);

static smoe_status walk_entry(smoe_text_list *list, visited *dirs, const char *directory, const char *name,
                              const char *extensions) {
  const bool slash = directory[0] && directory[strlen(directory) - 1] == '/';
  char *path = smoe_sprintf("%s%s%s", directory, slash ? "" : "/", name);
  struct stat about;
  smoe_status status = SMOE_OK;
  bool kept = false;
  if (stat(path, &about)) {
    /* A link to nowhere is common and no text. */
    if (errno != ENOENT && errno != ELOOP)
      status = SMOE_FAIL(SMOE_ERR_IO, "cannot look at '%s': %s", path, strerror(errno));
  } else if (S_ISDIR(about.st_mode)) {
    if (is_new(dirs, &about)) status = walk(list, dirs, path, extensions);
  } else if (S_ISREG(about.st_mode) && has_extension(name, extensions)) {
    add_file(list, path, about.st_size, false);
    kept = true;
  }
  if (!kept) smoe_free(path);
  return status;
}

static smoe_status walk(smoe_text_list *list, visited *dirs, const char *directory, const char *extensions) {
  struct dirent **entries;
  const int n = scandir(directory, &entries, not_hidden, by_bytes);
  SMOE_CHECK(n >= 0, SMOE_ERR_IO, "cannot read the directory '%s': %s", directory, strerror(errno));
  smoe_status status = SMOE_OK;
  for (int i = 0; i < n; i++) {
    if (status == SMOE_OK) status = walk_entry(list, dirs, directory, entries[i]->d_name, extensions);
    smoe_free(entries[i]); /* memory of the C library */
  }
  smoe_free(entries);
  return status;
}

smoe_status smoe_text_list_add(smoe_text_list *list, const char *path, const char *extensions) {
  struct stat about;
  SMOE_CHECK(stat(path, &about) == 0, SMOE_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  if (S_ISDIR(about.st_mode)) {
    visited dirs = {0};
    is_new(&dirs, &about);
    const smoe_status status = walk(list, &dirs, path, extensions);
    smoe_free(dirs.seen);
    return status;
  }
  SMOE_CHECK(S_ISREG(about.st_mode), SMOE_ERR_IO,
             "'%s' is neither a regular file nor a directory; text is read more than once, so write it to a "
             "file first",
             path);
  add_file(list, smoe_strdup(path), about.st_size, true);
  return SMOE_OK;
}

void smoe_text_list_free(smoe_text_list *list) {
  for (size_t i = 0; i < list->n_files; i++) smoe_free(list->file[i].path);
  smoe_free(list->file);
  *list = (smoe_text_list){0};
}
