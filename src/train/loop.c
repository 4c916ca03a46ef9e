#include "stablemoe/train.h"

#include <math.h>
#include <string.h>

#include "announce.h"
#include "open_log.h"
#include "patience.h"
#include "replay.h"
#include "resume.h"
#include "stablemoe/checkpoint.h"
#include "stablemoe/initial.h"
#include "stablemoe/io_probe.h"
#include "stablemoe/kernel.h"
#include "stablemoe/log.h"
#include "stablemoe/phase.h"
#include "stablemoe/progress.h"
#include "stablemoe/route_facts.h"
#include "stablemoe/run_directory.h"
#include "stablemoe/saver.h"
#include "stablemoe/timer.h"
#include "stablemoe/watchdog.h"
#include "stop.h"
#include "validation_bleu.h"

/* Everything a run holds on one rank. */
typedef struct run {
  smoe_config *config;
  const smoe_settings *settings; /* of config */
  const smoe_group *group;
  smoe_task task;
  smoe_model *model;
  smoe_step step;
  smoe_replay replay;
  smoe_routing_log *log; /* NULL for a dense model without gates */
  smoe_metrics metrics;
  smoe_progress progress;
  smoe_patience patience;
  char *checkpoints, *routing; /* directories */
  smoe_run_lock *lock;         /* NULL on other ranks than 0 */
  smoe_saver *saver;           /* NULL where updates wait for checkpoints */
  double launched;             /* seconds when the run was set up: run.max_minutes counts from here */
  int64_t done, saved; /* updates: of the model as it is, if one was begun here; of the newest checkpoint */
  int64_t n_sequences, n_tokens; /* read by training so far, by earlier lives of the run too */
} run;

/* ---- setting up ---- */

smoe_status smoe_train_check_ranks(const smoe_config *config, int n_ranks) {
  const smoe_settings *settings = smoe_config_settings(config);
  SMOE_CHECK(n_ranks <= settings->train.lanes, SMOE_ERR_CONFIG,
             "%d ranks for train.lanes = %lld: every rank needs a lane; set train.lanes to a multiple of the "
             "ranks (which changes the order of sums, so do it for a new run)",
             n_ranks, (long long)settings->train.lanes);
  const double tokens = (double)(smoe_family_batch_tokens(config) / settings->train.micro_batches);
  const double factor = settings->moe.capacity_factor;
  SMOE_CHECK(factor == 0 || factor * tokens >= (double)settings->moe.experts, SMOE_ERR_CONFIG,
             "moe.capacity_factor = %g leaves an expert no token of a micro-batch of %.0f: raise it, or use "
             "fewer experts or micro-batches",
             factor, tokens);
  return SMOE_OK;
}

static bool needs_bleu(const run *r) {
  return r->settings->train.patience_metric == SMOE_PATIENCE_BLEU &&
         smoe_task_has_split(&r->task, SMOE_VALID);
}

static smoe_status build(run *r, bool plan_only) {
  const smoe_settings *settings = r->settings;
  SMOE_TRY(smoe_train_check_ranks(r->config, r->group->n_ranks));
  SMOE_TRY(smoe_task_open(&r->task, r->config, r->group, settings->data.corpus));
  SMOE_TRY(r->task.ops->check(&r->task));
  smoe_model_shape shape = {.training = true};
  SMOE_TRY_ALL(r->group, r->task.ops->shape(&r->task, &shape, true));
  SMOE_TRY(smoe_model_create(&r->model, r->config, r->group, &shape, plan_only));
  if (plan_only) smoe_announce_work(&r->task, r->model);
  SMOE_TRY_ALL(r->group, smoe_model_print_plan(r->model));
  if (needs_bleu(r)) SMOE_TRY(smoe_validation_bleu_plan(r->model, &r->task));
  SMOE_TRY(smoe_step_create(&r->step, r->model, &r->task));
  smoe_announce_passes(&r->task);
  return smoe_replay_open(&r->replay, &r->step);
}

/* ---- resuming ---- */

static smoe_status check_meta(const run *r, const char *path, const smoe_checkpoint_meta *meta) {
  const bool same = meta->fingerprint == r->task.fingerprint;
  const bool other = meta->absolute[0] && strcmp(meta->absolute, r->task.absolute) != 0;
  SMOE_CHECK(same || !other, SMOE_ERR_CONFIG,
             "'%s' was trained on another corpus ('%s') than data.corpus = '%s': resume with that one", path,
             meta->absolute, r->settings->data.corpus);
  SMOE_CHECK(same, SMOE_ERR_CONFIG,
             "the corpus '%s' is not what it was when '%s' was saved: %s (fingerprint %016llx, not %016llx). "
             "Restore that corpus, or begin a new run",
             r->settings->data.corpus, path,
             meta->tokenizer && meta->tokenizer != r->task.tokenizer
                 ? "it was prepared again with another tokenizer"
                 : "it has other tokens",
             (unsigned long long)r->task.fingerprint, (unsigned long long)meta->fingerprint);
  SMOE_CHECK(meta->seed == (uint64_t)r->settings->run.seed, SMOE_ERR_CONFIG,
             "'%s' was trained with run.seed = %llu: resume with that seed", path,
             (unsigned long long)meta->seed);
  return SMOE_OK;
}

/* Load one checkpoint; its update number goes to *update. */
static smoe_status load(run *r, const char *path, int64_t *update) {
  smoe_checkpoint_meta meta = {0};
  SMOE_TRY(smoe_checkpoint_read_meta(path, r->group, &meta));
  smoe_status status = check_meta(r, path, &meta);
  if (status == SMOE_OK) status = smoe_checkpoint_load(path, &r->model->params);
  *update = meta.update;
  if (status == SMOE_OK) {
    smoe_resume_settle(r->config, path, &meta);
    smoe_patience_load(&r->patience, &meta.best);
    r->n_sequences = meta.n_sequences_seen;
    r->n_tokens = meta.n_tokens_seen;
    r->task.data_offset = r->n_sequences - meta.update * r->task.ops->n_units(&r->task);
  }
  smoe_free(meta.configuration);
  return status;
}

/* Before a directory is made that was only misspelt. */
static smoe_status check_resumable(const run *r) {
  bool found = true;
  if (r->group->rank == 0) {
    char **list = smoe_checkpoint_list(r->checkpoints);
    found = list[0] != NULL;
    for (int64_t i = 0; list[i]; i++) smoe_free(list[i]);
    smoe_free(list);
  }
  smoe_group_broadcast(r->group, &found, sizeof found, 0);
  SMOE_CHECK(found, SMOE_ERR_CONFIG,
             "--resume: there is no checkpoint in '%s' to resume from; check run.directory. A new run starts "
             "without --resume (with --overwrite where files of an earlier one are), and --start-or-resume "
             "does either, for batch jobs",
             r->checkpoints);
  return SMOE_OK;
}

/* The newest checkpoint that is sound; a damaged one is passed over, and said to be. */
static smoe_status resume(run *r, int64_t *update) {
  /* All ranks walk the list of rank 0: a shared file system may show others a different one. */
  char **list = r->group->rank == 0 ? smoe_checkpoint_list(r->checkpoints) : NULL;
  int64_t n = 0;
  while (list && list[n]) n++;
  smoe_group_broadcast(r->group, &n, sizeof n, 0);
  smoe_status status = SMOE_OK;
  *update = 0;
  if (n == 0) smoe_note("no checkpoint in '%s': starting from the beginning", r->checkpoints);
  for (int64_t i = 0; i < n; i++) {
    char path[4096] = "";
    if (list) snprintf(path, sizeof path, "%s", list[i]);
    smoe_group_broadcast(r->group, path, sizeof path, 0);
    status = load(r, path, update);
    if (status == SMOE_OK) {
      smoe_note("resumed from '%s': %lld updates done", path, (long long)*update);
      break;
    }
    if (status != SMOE_ERR_FORMAT && status != SMOE_ERR_IO) break;
    if (i + 1 < n) smoe_warn("%s; falling back to the checkpoint before", smoe_last_error());
  }
  for (int64_t i = 0; list && list[i]; i++) smoe_free(list[i]);
  smoe_free(list);
  return status;
}

/* The parameters as they are before the first update. */
static smoe_status start_anew(run *r) {
  smoe_params_initialise(&r->model->params, (uint64_t)r->settings->run.seed);
  SMOE_TRY(smoe_routers_prepare(r->model, &r->task));
  return smoe_initial_values(r->model, &r->task, true);
}

/* The corpus may be prepared again later; its tokenizer is what the model's ids mean. */
static smoe_status keep_tokenizer(const run *r) {
  char *path = smoe_sprintf("%s/tokenizer.model", r->settings->run.directory);
  const smoe_status status = smoe_corpus_write_tokenizer(smoe_task_tokenizer(&r->task), path);
  smoe_free(path);
  return status;
}

static smoe_status begin(run *r, const smoe_train_options *options, int64_t *update) {
  const smoe_settings *settings = r->settings;
  *update = 0;
  if (options->resume) SMOE_TRY(resume(r, update));
  if (options->resume && *update == 0) SMOE_TRY(start_anew(r));
  if (r->group->rank == 0)
    smoe_checkpoint_point_best(r->checkpoints, r->patience.keeps ? r->patience.best.update : 0);
  SMOE_TRY(smoe_run_directory_describe(r->config, r->group));
  SMOE_TRY_ALL(r->group, r->group->rank == 0 ? keep_tokenizer(r) : SMOE_OK);
  SMOE_TRY(smoe_routing_log_rewind(r->group, r->routing, *update));
  r->log = smoe_open_log(r->model, &r->task);
  SMOE_TRY_ALL(r->group, smoe_metrics_open(&r->metrics, settings->run.directory, r->model, *update));
  return SMOE_OK;
}

/* ---- while it runs ---- */

static bool due(int64_t every, int64_t done) {
  return every > 0 && done % every == 0;
}

/* Write a checkpoint, or begin to: the last ones of a run are waited for. */
static smoe_status save_model(run *r, const smoe_checkpoint_meta *meta, bool wait) {
  const smoe_settings *settings = r->settings;
  const smoe_best *best = &r->patience.best;
  const smoe_params *params = &r->model->params;
  const smoe_saver_after after = {settings->train.keep_last, settings->train.keep_every, best->update};
  if (r->saver && !wait) return smoe_saver_begin(r->saver, r->checkpoints, params, meta, &after);
  SMOE_TRY(smoe_checkpoint_save(r->checkpoints, params, meta));
  r->saved = meta->update;
  if (best->update == meta->update && r->group->rank == 0)
    smoe_checkpoint_point_best(r->checkpoints, meta->update);
  return smoe_checkpoint_prune(r->checkpoints, r->group, after.keep_last, after.keep_every, after.best);
}

static smoe_status save(run *r, int64_t done, bool wait) {
  const smoe_settings *settings = r->settings;
  smoe_checkpoint_meta meta = {
      .update = done,
      .stage = smoe_stage(r->model, settings, done),
      .seed = (uint64_t)settings->run.seed,
      .n_tokens_seen = r->n_tokens,
      .n_sequences_seen = r->n_sequences,
      .fingerprint = r->task.fingerprint,
      .tokenizer = r->task.tokenizer,
      .best = r->patience.best,
      .configuration = smoe_config_text(r->config, false),
  };
  snprintf(meta.corpus, sizeof meta.corpus, "%s", settings->data.corpus);
  snprintf(meta.absolute, sizeof meta.absolute, "%s", r->task.absolute);
  SMOE_TRY_ALL(r->group, smoe_run_lock_check(r->lock, true));
  /* The log first: a checkpoint without its log would leave a hole after a resume. */
  smoe_status status = r->log ? smoe_routing_log_write(r->log, r->routing, done) : SMOE_OK;
  if (status == SMOE_OK) status = save_model(r, &meta, wait);
  smoe_free(meta.configuration);
  return status;
}

/* A checkpoint that fails in mid-run may be passed over; the last one of a run may not. */
static smoe_status pass_over(const run *r, int64_t update, smoe_status status, bool needed) {
  if (status != SMOE_ERR_IO || needed || r->settings->train.on_save_error == SMOE_SAVE_STOP) return status;
  smoe_warn("update %lld: %s; training continues (train.on_save_error: continue)", (long long)update,
            smoe_last_error());
  return SMOE_OK;
}

/* Wait for the checkpoint that is being written, if one is. */
static smoe_status end_save(run *r, int64_t *update) {
  const smoe_status status = smoe_saver_finish(r->saver, update);
  if (status == SMOE_OK && *update > 0) r->saved = *update;
  return status;
}

static smoe_status save_as_asked(run *r, int64_t done, bool needed) {
  int64_t before;
  const smoe_status status = end_save(r, &before);
  SMOE_TRY(pass_over(r, before, status, false));
  return pass_over(r, done, save(r, done, needed), needed);
}

/* Asked before a file gets its name: the run may have lost its directory since the save began. */
static smoe_status may_publish(void *context) {
  return smoe_run_lock_check(((run *)context)->lock, true);
}

static void record(run *r, int64_t done, const smoe_step_result *result) {
  const smoe_settings *settings = r->settings;
  if (!r->log) return;
  if (due(settings->log.load_every, done))
    smoe_routing_log_load(r->log, done, result->stage, result->layer, result->skip);
  if (due(settings->log.probe_every, done) && smoe_probe_tokens(&r->task) > 0)
    smoe_probe(r->model, &r->task, r->log, done, smoe_stage(r->model, settings, done));
}

/* Count an evaluation; returns true if its checkpoint is to be kept. What stage 1 learns is not yet the model. */
static bool count(run *r, int64_t done, const smoe_evaluation *valid) {
  const smoe_settings *settings = r->settings;
  const bool counts = smoe_stage(r->model, settings, done) == 2 ||
                      smoe_stage(r->model, settings, settings->train.updates - 1) == 1;
  const bool by_bleu = settings->train.patience_metric == SMOE_PATIENCE_BLEU;
  return counts && smoe_patience_count(&r->patience, done, by_bleu ? valid->bleu : valid->loss);
}

static smoe_status validate(run *r, int64_t done, smoe_evaluation *valid, bool *best) {
  const int stage = smoe_stage(r->model, r->settings, done);
  int64_t n_pairs = 0;
  SMOE_TRY(smoe_evaluate(r->model, &r->task, SMOE_VALID, r->settings->train.evaluate_sequences, done, stage,
                         valid));
  if (needs_bleu(r)) SMOE_TRY(smoe_validation_bleu(r->model, &r->task, done, stage, &valid->bleu, &n_pairs));
  *best = count(r, done, valid);
  char more[64] = "", since[96];
  smoe_patience_describe(&r->patience, since, sizeof since);
  if (n_pairs > 0) snprintf(more, sizeof more, ", BLEU %.2f of %lld pairs", valid->bleu, (long long)n_pairs);
  if (smoe_task_is_language(&r->task))
    snprintf(more, sizeof more, " (corpus bigram: %.4f)", r->task.corpus.bigram);
  if (smoe_task_is_images(&r->task))
    smoe_note("update %lld: validation loss %.4f, accuracy %.2f %% of %.0f images%s", (long long)done,
              valid->loss, 100 * valid->accuracy, valid->n_targets, since);
  else
    smoe_note("update %lld: validation loss %.4f, perplexity %.2f over %.0f tokens%s%s", (long long)done,
              valid->loss, valid->perplexity, valid->n_targets, more, since);
  smoe_model_note_skips(r->model);
  return SMOE_OK;
}

static smoe_status one_update(run *r, int64_t update) {
  const smoe_settings *settings = r->settings;
  const int64_t done = update + 1;
  const bool last = done == settings->train.updates;
  smoe_step_result result = {0};
  const double before = smoe_seconds();
  smoe_watchdog_update(done);
  r->step.tokens_log = due(settings->log.tokens_every, done) ? r->log : NULL;
  if (r->step.tokens_log) smoe_routing_log_tokens(r->log, done);
  if (update == settings->router.stage1_updates && smoe_stage(r->model, settings, update) == 2)
    smoe_note("update %lld: stage 2 begins, the router is frozen", (long long)done);
  SMOE_TRY(smoe_replay_update(&r->replay, &r->step, update));
  double phase[SMOE_PHASES];
  smoe_phase_reset();
  SMOE_TRY(smoe_step_update(&r->step, update, &result));
  const double seconds = smoe_seconds() - before;
  smoe_step_phases(r->group, phase);
  smoe_progress_report(&r->progress, done, &result, seconds);
  record(r, done, &result);

  smoe_evaluation valid;
  bool best = false;
  const bool evaluated =
      smoe_task_has_split(&r->task, SMOE_VALID) && (due(settings->train.evaluate_every, done) || last);
  if (evaluated) SMOE_TRY(validate(r, done, &valid, &best));
  SMOE_TRY_ALL(r->group, smoe_run_lock_check(r->lock, false));
  smoe_saver_poll(r->saver);
  r->n_sequences += r->task.ops->n_units(&r->task);
  r->n_tokens += r->task.ops->n_targets(&r->task, update);
  SMOE_TRY_ALL(r->group, smoe_metrics_write(&r->metrics, done, r->n_tokens, &result,
                                            evaluated ? &valid : NULL, seconds, phase));

  r->done = done;
  /* Asked after the last one too: a wish that came late must not stop the run that somebody goes on with. */
  const smoe_stop asked = smoe_stop_request(r->group, settings, r->launched);
  const bool over = last || smoe_patience_over(&r->patience), stop = asked != SMOE_STOP_NOT && !over;
  if (due(settings->train.checkpoint_every, done) || over || stop || best)
    SMOE_TRY(save_as_asked(r, done, over || stop));
  return stop ? smoe_stop_report(asked, settings, done) : SMOE_OK;
}

/* A file `stop` that is there before a run goes on was made while nothing ran, or while a batch system was about to
 * start it again: who made it does not want it to run. A new run knows of no such wish.
 */
static smoe_status check_unasked(const run *r, const smoe_train_options *options, int64_t update) {
  if (!smoe_stop_clear(r->group, r->settings) || !options->resume) return SMOE_OK;
  smoe_note("not started: found and removed '%s/stop'; the same command continues from update %lld",
            r->settings->run.directory, (long long)update);
  return SMOE_STOPPED_BY_HAND;
}

/* A file system that checkpoints cannot be written to should show before hours of work. */
static smoe_status try_saving(const run *r) {
  enum { BYTES = 1 << 12 };
  double seconds;
  const smoe_status status = smoe_io_probe(r->group, r->settings->run.directory, BYTES, &seconds);
  if (status == SMOE_ERR_IO && r->group->rank == 0)
    smoe_warn(
        "a small file could not be written in run.directory as checkpoints are: `stablemoe doctor %s` tries "
        "the same; where a file system has no locks, OMPI_MCA_fs_ufs_lock_algorithm=1 may help",
        r->settings->run.directory);
  return status;
}

static void report_patience(const run *r) {
  const smoe_best *best = &r->patience.best;
  char value[32];
  if (!smoe_patience_over(&r->patience)) return;
  smoe_patience_value(&r->patience, value, sizeof value);
  smoe_note("early stop: the %s has not improved in %lld evaluations; the best is %s at update %lld "
            "(train.patience %lld, --best of evaluate and others)",
            smoe_patience_what(&r->patience), (long long)best->n_since, value, (long long)best->update,
            (long long)r->patience.patience);
}

static smoe_status train(run *r, const smoe_train_options *options) {
  const smoe_settings *settings = r->settings;
  if (options->resume && !options->start && !options->dry_run) SMOE_TRY(check_resumable(r));
  SMOE_TRY(build(r, options->dry_run));
  if (options->dry_run) {
    SMOE_TRY(smoe_routers_check(r->model, &r->task));
    if (!options->resume) SMOE_TRY(smoe_initial_values(r->model, &r->task, false));
    smoe_note("dry run: configuration, corpus and memory are fine; nothing was started");
    return SMOE_OK;
  }
  /* It may fail: before the run that is to be overwritten is gone. */
  if (!options->resume) SMOE_TRY(start_anew(r));
  SMOE_TRY(smoe_run_directory_open(r->config, r->group, options->resume, options->overwrite, &r->lock));
  int64_t update;
  SMOE_TRY(begin(r, options, &update));
  if (update >= settings->train.updates) {
    smoe_note("all %lld updates are done: raise train.updates to continue",
              (long long)settings->train.updates);
    return SMOE_OK;
  }
  if (smoe_patience_over(&r->patience)) {
    report_patience(r);
    smoe_note("nothing is left to do after update %lld: raise train.patience to continue", (long long)update);
    return SMOE_OK;
  }
  r->saved = update;
  SMOE_TRY(check_unasked(r, options, update));
  SMOE_TRY(try_saving(r));
  if (r->model->copy_bytes > 0) smoe_saver_create(&r->saver, &r->model->params, may_publish, r);
  smoe_watchdog_start(r->group, settings->comm.watchdog_s, settings->comm.watchdog_end);
  smoe_stop_watch(r->group);
  if (options->trace) SMOE_TRY_ALL(r->group, smoe_phase_trace_begin(options->trace, r->group->rank));
  smoe_progress_begin(&r->progress, r->model, settings, update);
  const double began = smoe_seconds();
  for (; update < settings->train.updates && !smoe_patience_over(&r->patience); update++)
    SMOE_TRY(one_update(r, update));
  report_patience(r);
  smoe_run_report_done(settings, r->done, smoe_seconds() - began);
  return SMOE_OK;
}

/* A run that fails in mid-run leaves the checkpoint that it had begun. */
static void end_last_save(run *r, smoe_status status) {
  int64_t update;
  char *report = smoe_strdup(smoe_last_error());
  if (end_save(r, &update) != SMOE_OK)
    smoe_warn("the checkpoint of update %lld was not saved: %s", (long long)update, smoe_last_error());
  if (status != SMOE_OK) smoe_report_set(report);
  smoe_free(report);
}

smoe_status smoe_train(smoe_config *config, const smoe_group *group, const smoe_train_options *options) {
  const smoe_settings *settings = smoe_config_settings(config);
  run r = {.config = config, .settings = settings, .group = group};
  r.checkpoints = smoe_sprintf("%s/checkpoints", settings->run.directory);
  r.routing = smoe_sprintf("%s/routing", settings->run.directory);
  smoe_patience_begin(&r.patience, settings);
  r.launched = smoe_seconds();
  smoe_status status = train(&r, options);
  end_last_save(&r, status);
  smoe_watchdog_stop();
  /* Also of a run that failed: the trace of its last updates is wanted most then. */
  const smoe_status traced = smoe_phase_trace_end();
  if (status == SMOE_OK) status = smoe_group_agree(group, traced);
  smoe_progress_end(&r.progress);
  smoe_metrics_close(&r.metrics);
  if (r.log) smoe_routing_log_destroy(r.log);
  smoe_replay_close(&r.replay);
  smoe_run_lock_release(r.lock);
  smoe_saver_destroy(r.saver);
  smoe_step_destroy(&r.step);
  smoe_model_destroy(r.model);
  smoe_task_close(&r.task);
  smoe_run_report_error(status, settings, r.done, r.saved);
  smoe_log_file(NULL);
  smoe_free(r.checkpoints);
  smoe_free(r.routing);
  return status;
}
