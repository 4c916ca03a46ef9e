#include "announce.h"

#include "stablemoe/bench.h"
#include "stablemoe/family.h"
#include "stablemoe/log.h"

/* What a batch script wants to know before it asks for time, or starts ranks. */
void smoe_announce_work(const smoe_task *task, const smoe_model *model) {
  const smoe_settings *settings = task->settings;
  const bool images = smoe_task_is_images(task);
  smoe_note("run directory: %s", settings->run.directory);
  smoe_note("work: %lld updates of %lld %s in %lld lanes, %.4g GFLOP each",
            (long long)settings->train.updates,
            (long long)(images ? settings->train.batch_sequences : smoe_family_batch_tokens(model->config)),
            images ? "images" : "tokens", (long long)settings->train.lanes, smoe_bench_flops(model) / 1e9);
}

static void announce_pairs(smoe_task *task, double passes) {
  const smoe_pair_padding padding = smoe_pair_sampler_padding(&task->train, 0);
  smoe_note("data: %.3g passes over the training split; %.1f %% of the source rows and %.1f %% of the target "
            "rows are padding",
            passes, 100 * padding.source, 100 * padding.target);
}

/* Text repeated up to four times trains almost like new text, more often less and less (arXiv 2305.16264). */
void smoe_announce_passes(smoe_task *task) {
  enum { MANY = 4 };
  const double passes = task->ops->passes(task, task->settings->train.updates);
  if (smoe_task_is_images(task)) {
    smoe_note("data: %.3g passes over %lld training images", passes, (long long)task->n_sequences);
    return;
  }
  if (!smoe_task_is_language(task)) {
    announce_pairs(task, passes);
    return;
  }
  smoe_note("data: %.3g passes over the training split", passes);
  if (passes > MANY)
    smoe_warn(
        "%.3g passes over the training split are many: from about %d on, repeated text teaches less and "
        "less; use more text, or fewer updates, and watch the validation loss",
        passes, MANY);
}
