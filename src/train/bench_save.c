/* What checkpoints cost the updates of a run: those that wait for them, and those that go on. */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "bench_internal.h"
#include "stablemoe/saver.h"
#include "stablemoe/timer.h"

enum { REPEATS = 3 };

/* What the repeats have in common. */
typedef struct saves {
  smoe_step *step;
  smoe_saver *saver; /* NULL: updates wait */
  char *directory;
  char *configuration;
  int64_t next;    /* number of the next update */
  double update_s; /* of an update beside which nothing is written */
  double held[REPEATS], extra[REPEATS], updates[REPEATS];
} saves;

static smoe_checkpoint_meta meta_of(const saves *s, int repeat) {
  return (smoe_checkpoint_meta){.update = repeat + 1, .stage = 1, .configuration = s->configuration};
}

static double seconds_since(const smoe_group *group, double before) {
  double seconds = smoe_seconds() - before;
  smoe_group_max_f64(group, &seconds, 1);
  return seconds;
}

static smoe_status save_and_wait(saves *s, int repeat) {
  const smoe_params *params = &s->step->model->params;
  const smoe_checkpoint_meta meta = meta_of(s, repeat);
  smoe_group_barrier(&params->group);
  const double before = smoe_seconds();
  SMOE_TRY(smoe_checkpoint_save(s->directory, params, &meta));
  s->held[repeat] = seconds_since(&params->group, before);
  return smoe_checkpoint_prune(s->directory, &params->group, 1, 0, 0);
}

/* Train on until the file has its name. */
static smoe_status save_beside(saves *s, int repeat) {
  const smoe_params *params = &s->step->model->params;
  const smoe_checkpoint_meta meta = meta_of(s, repeat);
  const smoe_saver_after after = {.keep_last = 1};
  smoe_step_result result;
  int64_t update;
  int n = 0;
  smoe_group_barrier(&params->group);
  const double before = smoe_seconds();
  SMOE_TRY(smoe_saver_begin(s->saver, s->directory, params, &meta, &after));
  s->held[repeat] = seconds_since(&params->group, before);
  for (double busy = 1; busy > 0; n++) {
    SMOE_TRY(smoe_step_update(s->step, s->next++, &result));
    smoe_saver_poll(s->saver);
    busy = smoe_saver_busy(s->saver);
    smoe_group_max_f64(&params->group, &busy, 1);
  }
  s->extra[repeat] = seconds_since(&params->group, before) - n * s->update_s;
  s->updates[repeat] = n;
  return smoe_saver_finish(s->saver, &update);
}

static void delete_files(const saves *s) {
  char **list = smoe_checkpoint_list(s->directory), *latest = smoe_sprintf("%s/latest", s->directory);
  for (size_t i = 0; list[i]; i++) {
    unlink(list[i]);
    smoe_free(list[i]);
  }
  unlink(latest);
  rmdir(s->directory);
  smoe_free(list);
  smoe_free(latest);
}

static smoe_status repeat(saves *s, smoe_bench_save *out) {
  for (int i = 0; i < REPEATS; i++) SMOE_TRY(save_and_wait(s, i));
  out->wait_s = smoe_bench_median(s->held, REPEATS);
  smoe_saver_create(&s->saver, &s->step->model->params, NULL, NULL);
  if (!s->saver) return SMOE_OK;
  for (int i = 0; i < REPEATS; i++) SMOE_TRY(save_beside(s, i));
  out->held_s = smoe_bench_median(s->held, REPEATS);
  out->extra_s = smoe_bench_median(s->extra, REPEATS);
  out->updates = smoe_bench_median(s->updates, REPEATS);
  return SMOE_OK;
}

smoe_status smoe_bench_saves(smoe_bench_save *out, smoe_step *step, const char *directory, int64_t first,
                             double update_s) {
  const smoe_params *params = &step->model->params;
  saves s = {.step = step, .next = first, .update_s = update_s};
  int64_t process = (int64_t)getpid(), update;
  smoe_group_broadcast(&params->group, &process, sizeof process, 0);
  s.directory = smoe_sprintf("%s/stablemoe-bench-%lld", directory, (long long)process);
  s.configuration = smoe_config_text(step->model->config, false);
  double bytes = (double)smoe_params_state_bytes(params);
  smoe_group_max_f64(&params->group, &bytes, 1);
  out->copy_bytes = bytes;
  const smoe_status status = repeat(&s, out);
  smoe_saver_finish(s.saver, &update); /* of one whose updates failed */
  smoe_saver_destroy(s.saver);
  if (params->group.rank == 0) delete_files(&s);
  smoe_free(s.directory);
  smoe_free(s.configuration);
  return status;
}
