#include "stablemoe/run_directory.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stablemoe/arena.h"
#include "stablemoe/log.h"

/* mkdir -p */
static smoe_status make_path(const char *path) {
  char *part = smoe_strdup(path);
  smoe_status status = SMOE_OK;
  for (char *at = part + 1; status == SMOE_OK; at++) {
    const char end = *at;
    if (end != '/' && end != '\0') continue;
    *at = '\0';
    if (mkdir(part, 0777) != 0 && errno != EEXIST)
      status = SMOE_FAIL(SMOE_ERR_IO, "cannot make the directory '%s': %s", part, strerror(errno));
    *at = end;
    if (end == '\0') break;
  }
  smoe_free(part);
  return status;
}

/* Delete the files of a directory whose names end in suffix. */
static void delete_files(const char *directory, const char *name, const char *suffix) {
  char *path = smoe_sprintf("%s/%s", directory, name);
  DIR *dir = opendir(path);
  for (struct dirent *entry; dir && (entry = readdir(dir));) {
    const size_t n = strlen(entry->d_name), k = strlen(suffix);
    if (n < k || strcmp(entry->d_name + n - k, suffix) != 0) continue;
    char *file = smoe_sprintf("%s/%s", path, entry->d_name);
    unlink(file);
    smoe_free(file);
  }
  if (dir) closedir(dir);
  smoe_free(path);
}

static smoe_status write_text(const char *path, const char *text) {
  char *part = smoe_sprintf("%s.part", path);
  FILE *file = fopen(part, "w");
  bool good = file != NULL;
  if (file) {
    good = fputs(text, file) >= 0 && fflush(file) == 0;
    good = fclose(file) == 0 && good;
  }
  good = good && rename(part, path) == 0;
  const smoe_status status =
      good ? SMOE_OK : SMOE_FAIL(SMOE_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  if (!good) unlink(part);
  smoe_free(part);
  return status;
}

static smoe_status open_files(const char *directory, const smoe_config *config) {
  char *used = smoe_sprintf("%s/used.yml", directory), *log = smoe_sprintf("%s/log.txt", directory);
  char *text = smoe_config_text(config, false);
  smoe_status status = write_text(used, text);
  if (status == SMOE_OK && !smoe_log_file(log))
    status = SMOE_FAIL(SMOE_ERR_IO, "cannot write '%s': %s", log, strerror(errno));
  smoe_free(text);
  smoe_free(used);
  smoe_free(log);
  return status;
}

static smoe_status open_on_root(const smoe_config *config, bool resume, bool overwrite) {
  const char *directory = smoe_config_settings(config)->run.directory;
  char *used = smoe_sprintf("%s/used.yml", directory);
  const bool exists = access(used, F_OK) == 0;
  smoe_free(used);
  SMOE_CHECK(!exists || resume || overwrite, SMOE_ERR_CONFIG,
             "run.directory '%s' holds a run already: add --resume to go on with it, --overwrite to start "
             "anew, or choose another directory with -P run.directory=...",
             directory);
  SMOE_CHECK(!smoe_fault("run.directory"), SMOE_ERR_IO, "injected fault at run.directory");
  SMOE_TRY(make_path(directory));
  static const char *const parts[] = {"checkpoints", "routing"};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    char *path = smoe_sprintf("%s/%s", directory, parts[i]);
    const smoe_status status = make_path(path);
    smoe_free(path);
    SMOE_TRY(status);
    if (exists && !resume) {
      delete_files(directory, parts[i], ".h5");
      delete_files(directory, parts[i], "latest");
    }
  }
  if (exists && !resume) {
    delete_files(directory, ".", "metrics.csv");
    delete_files(directory, ".", "log.txt");
  }
  return open_files(directory, config);
}

smoe_status smoe_run_directory_open(const smoe_config *config, const smoe_group *group, bool resume,
                                    bool overwrite) {
  smoe_status status = SMOE_OK;
  if (group->rank == 0) status = open_on_root(config, resume, overwrite);
  return smoe_group_agree(group, status);
}

bool smoe_run_directory_stop(const char *directory) {
  char *path = smoe_sprintf("%s/stop", directory);
  const bool stop = unlink(path) == 0;
  smoe_free(path);
  return stop;
}
