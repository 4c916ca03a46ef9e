#include "stablemoe/run_directory.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "stablemoe/arena.h"
#include "stablemoe/directory.h"
#include "stablemoe/log.h"
#include "stablemoe/run_lock.h"

static void delete_file(const char *directory, const char *name) {
  char *path = smoe_sprintf("%s/%s", directory, name);
  unlink(path);
  smoe_free(path);
}

/* Delete step-<update>.h5 in a part of the run; other files there are somebody's own. */
static void delete_steps(const char *directory, const char *part) {
  char *path = smoe_sprintf("%s/%s", directory, part);
  DIR *dir = opendir(path);
  for (struct dirent *entry; dir && (entry = readdir(dir));) {
    const char *end = strrchr(entry->d_name, '.');
    if (strncmp(entry->d_name, "step-", 5) == 0 && end && strcmp(end, ".h5") == 0)
      delete_file(path, entry->d_name);
  }
  if (dir) closedir(dir);
  smoe_free(path);
}

/* metrics-1.csv, ...: of a run that several versions of the program went on with (metrics.h). */
static void delete_kept_metrics(const char *directory) {
  bool there = true;
  for (int i = 1; there; i++) {
    char *file = smoe_sprintf("%s/metrics-%d.csv", directory, i);
    there = unlink(file) == 0;
    smoe_free(file);
  }
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

static smoe_status open_log(const char *directory) {
  char *log = smoe_sprintf("%s/log.txt", directory);
  smoe_status status = SMOE_OK;
  if (!smoe_log_file(log)) status = SMOE_FAIL(SMOE_ERR_IO, "cannot write '%s': %s", log, strerror(errno));
  smoe_free(log);
  return status;
}

static smoe_status open_on_root(const smoe_config *config, bool resume, bool overwrite,
                                smoe_run_lock **lock) {
  const char *directory = smoe_config_settings(config)->run.directory;
  char *used = smoe_sprintf("%s/used.yml", directory);
  const bool exists = access(used, F_OK) == 0;
  smoe_free(used);
  SMOE_CHECK(!exists || resume || overwrite, SMOE_ERR_CONFIG,
             "run.directory '%s' holds a run already: add --resume to continue it, --overwrite to start "
             "anew, or choose another directory with -P run.directory=...",
             directory);
  SMOE_CHECK(!smoe_fault("run.directory"), SMOE_ERR_IO, "injected fault at run.directory");
  SMOE_TRY(smoe_directory_make(directory));
  /* Before anything of another run is touched. */
  SMOE_TRY(smoe_run_lock_take(lock, directory));
  static const char *const parts[] = {"checkpoints", "routing"};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    char *path = smoe_sprintf("%s/%s", directory, parts[i]);
    const smoe_status status = smoe_directory_make(path);
    smoe_free(path);
    SMOE_TRY(status);
    if (exists && !resume) {
      delete_steps(directory, parts[i]);
    }
  }
  if (exists && !resume) {
    delete_file(directory, "checkpoints/latest");
    delete_file(directory, "checkpoints/best");
    delete_file(directory, "average.h5");
    delete_file(directory, "metrics.csv");
    delete_file(directory, "log.txt");
    delete_kept_metrics(directory);
  }
  return open_log(directory);
}

smoe_status smoe_run_directory_open(const smoe_config *config, const smoe_group *group, bool resume,
                                    bool overwrite, smoe_run_lock **lock) {
  smoe_status status = SMOE_OK;
  *lock = NULL;
  if (group->rank == 0) status = open_on_root(config, resume, overwrite, lock);
  return smoe_group_agree(group, status);
}

static smoe_status describe_on_root(const smoe_config *config) {
  char *used = smoe_sprintf("%s/used.yml", smoe_config_settings(config)->run.directory);
  char *text = smoe_config_text(config, false);
  const smoe_status status = write_text(used, text);
  smoe_free(text);
  smoe_free(used);
  return status;
}

smoe_status smoe_run_directory_describe(const smoe_config *config, const smoe_group *group) {
  return smoe_group_agree(group, group->rank == 0 ? describe_on_root(config) : SMOE_OK);
}

bool smoe_run_directory_stop(const char *directory) {
  char *path = smoe_sprintf("%s/stop", directory);
  const bool stop = unlink(path) == 0;
  smoe_free(path);
  return stop;
}
