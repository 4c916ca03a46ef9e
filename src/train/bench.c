#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_internal.h"
#include "stablemoe/core_peak.h"
#include "stablemoe/initial.h"
#include "stablemoe/kernel.h"
#include "stablemoe/route_facts.h"
#include "stablemoe/timer.h"

static double product_flops(const smoe_product *p) {
  return 2.0 * (double)p->m * (double)p->n * (double)p->k;
}

double smoe_bench_product_flops(const smoe_work *work) {
  double sum = 0;
  for (size_t i = 0; i < work->n; i++) sum += work->product[i].count * product_flops(&work->product[i]);
  return sum;
}

static double flops_of(const smoe_model *model, bool everything) {
  const smoe_settings *settings = smoe_config_settings(model->config);
  const smoe_work work = smoe_model_work(model, everything);
  const double sum = work.other + smoe_bench_product_flops(&work);
  smoe_free(work.product);
  return sum * (double)settings->train.micro_batches;
}

double smoe_bench_flops(const smoe_model *model) {
  return flops_of(model, false);
}

/* Least seconds of a call by the clock on the wall [0] and by the processor's [1]. */
static void seconds_of_product(double *least, const smoe_product *p, smoe_real *a, smoe_real *b,
                               smoe_real *c) {
  enum { REPEATS = 12 };
  const int calls = 1 + (int)(5e7 / product_flops(p)); /* short: some then meet no other program */
  least[0] = least[1] = INFINITY;
  for (int r = 0; r < REPEATS; r++) {
    const double before[] = {smoe_seconds(), smoe_processor_seconds()};
    for (int i = 0; i < calls; i++)
      smoe_gemm(p->transpose_a, p->transpose_b, p->m, p->n, p->k, 1, a, p->transpose_a ? p->m : p->k, b,
                p->transpose_b ? p->k : p->n, 0, c, p->n);
    least[0] = fmin(least[0], (smoe_seconds() - before[0]) / calls);
    least[1] = fmin(least[1], (smoe_processor_seconds() - before[1]) / calls);
  }
}

/* FLOP-weighted rates of the machine's GEMM on the model's own shapes, by both clocks. */
static void gemm_rates(double *rate, const smoe_model *model) {
  const smoe_work work = smoe_model_work(model, false);
  size_t most = 0;
  for (size_t i = 0; i < work.n; i++) {
    const smoe_product *p = &work.product[i];
    const size_t sizes[] = {p->m * p->k, p->k * p->n, p->m * p->n};
    for (int s = 0; s < 3; s++)
      if (sizes[s] > most) most = sizes[s];
  }
  smoe_real *memory = smoe_alloc(3 * most * sizeof *memory);
  for (size_t i = 0; i < 3 * most; i++) memory[i] = (smoe_real)(i % 7) - 3;
  double flops = 0, seconds[2] = {0};
  for (size_t i = 0; i < work.n; i++) {
    const smoe_product *p = &work.product[i];
    if (p->m == 0 || p->n == 0 || p->k == 0) continue;
    double least[2];
    seconds_of_product(least, p, memory, memory + most, memory + 2 * most);
    flops += p->count * product_flops(p);
    for (int clock = 0; clock < 2; clock++) seconds[clock] += p->count * least[clock];
  }
  smoe_free(memory);
  smoe_free(work.product);
  for (int clock = 0; clock < 2; clock++) rate[clock] = flops / seconds[clock];
}

static int compare_doubles(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double rank_imbalance(const smoe_model *model) {
  const smoe_moe_layer *moe = model->moe[0];
  const int g = model->topology.experts.n_ranks, e = moe->router.n_experts;
  double max = 0, sum = 0;
  for (int r = 0; r < g; r++) {
    double rows = 0;
    for (int i = smoe_expert_first(e, r, g); i < smoe_expert_first(e, r + 1, g); i++)
      rows += (double)moe->load[smoe_expert_at(moe->exchange.shape.expert_at, i)];
    max = fmax(max, rows);
    sum += rows;
  }
  return max / (sum / g);
}

static void add_loads(double *sum, const smoe_model *model, double factor) {
  const size_t n_experts = (size_t)model->params.n_experts;
  for (int m = 0; m < model->n_moe; m++)
    for (size_t e = 0; e < n_experts; e++)
      sum[(size_t)m * n_experts + e] += factor * (double)model->moe[m]->load[e];
}

double smoe_bench_median(const double *values, int n) {
  double *sorted = smoe_alloc((size_t)n * sizeof *sorted);
  memcpy(sorted, values, (size_t)n * sizeof *sorted);
  qsort(sorted, (size_t)n, sizeof *sorted, compare_doubles);
  const double middle = sorted[n / 2];
  smoe_free(sorted);
  return middle;
}

/* Time `updates` updates from number `first` on. */
static smoe_status measure(smoe_step *step, const smoe_bench_options *options, int64_t first,
                           smoe_bench_stage *stage) {
  const smoe_group *group = &step->model->params.group;
  smoe_step_result result;
  for (int i = 0; i < options->warmup; i++) SMOE_TRY(smoe_step_update(step, first + i, &result));
  const size_t n = (size_t)options->updates;
  double *seconds = stage->update_seconds = smoe_alloc(n * sizeof *seconds);
  double *processor = stage->update_processor = smoe_alloc(n * sizeof *processor);
  stage->update_loss = smoe_alloc(n * sizeof *stage->update_loss);
  stage->load =
      smoe_alloc((size_t)step->model->n_moe * (size_t)step->model->params.n_experts * sizeof *stage->load);
  smoe_phase_reset();
  smoe_status status = SMOE_OK;
  for (int i = 0; i < options->updates && status == SMOE_OK; i++) {
    smoe_group_barrier(group);
    const double before = smoe_seconds(), processor_before = smoe_processor_seconds();
    status = smoe_step_update(step, first + options->warmup + i, &result);
    seconds[i] = smoe_seconds() - before;
    processor[i] = smoe_processor_seconds() - processor_before;
    stage->update_loss[i] = result.loss;
    add_loads(stage->load, step->model, 1.0 / options->updates);
  }
  smoe_group_max_f64(group, seconds, options->updates);
  smoe_group_max_f64(group, processor, options->updates);
  SMOE_TRY(status);
  stage->seconds = smoe_bench_median(seconds, options->updates);
  stage->stage = result.stage;
  stage->loss = result.loss;
  stage->tokens_per_s = result.n_targets / stage->seconds;
  stage->load_max_over_mean = step->model->n_moe ? rank_imbalance(step->model) : NAN;
  smoe_step_phases(group, stage->phase);
  for (int p = 0; p < SMOE_PHASES; p++) stage->phase[p] /= options->updates;
  return SMOE_OK;
}

static void measure_link(smoe_bench *bench, const smoe_model *model, size_t rows) {
  enum { REPEATS = 20 };
  const size_t g = (size_t)model->topology.experts.n_ranks;
  smoe_bench_link *link = &bench->link[bench->n_links++];
  link->bytes = (double)(g * rows * model->moe[0]->exchange.row_bytes);
  link->seconds = smoe_exchange_bare_seconds(&model->moe[0]->exchange, rows, REPEATS);
  smoe_group_max_f64(&model->params.group, &link->seconds, 1);
}

static void measure_exchange(smoe_bench *bench, const smoe_model *model) {
  const smoe_settings *settings = smoe_config_settings(model->config);
  const int g = model->topology.experts.n_ranks;
  bench->exchange_rate = bench->bare_rate = NAN;
  if (model->n_moe == 0 || g == 1) return;
  bench->exchange_rows = (double)model->shape[SMOE_MAIN].n_replica / g * model->moe[0]->router.n_slots;
  const double bytes = bench->exchange_rows * (double)model->moe[0]->exchange.row_bytes;
  const double calls = 4.0 * (double)settings->train.micro_batches * model->n_moe;
  bench->exchange_rate = bytes * calls / bench->stage[bench->n_stages - 1].phase[SMOE_PHASE_TRANSFER];
  const size_t rows = bench->exchange_rows > g ? (size_t)(bench->exchange_rows / g) : 1;
  for (size_t n = 1; n < rows && bench->n_links < SMOE_BENCH_LINKS - 1; n *= 4) measure_link(bench, model, n);
  measure_link(bench, model, rows);
  bench->bare_rate = bench->link[bench->n_links - 1].bytes / bench->link[bench->n_links - 1].seconds;
}

/* What the figures belong to. */
static void describe(smoe_bench *bench, const smoe_model *model, const smoe_bench_options *options) {
  const smoe_group *group = &model->params.group;
  const double share = 1.0 / smoe_group_ranks_here(group);
  double *all = smoe_alloc((size_t)group->n_ranks * sizeof *all), nodes = 0;
  int *one = smoe_alloc((size_t)group->n_ranks * sizeof *one);
  for (int r = 0; r < group->n_ranks; r++) one[r] = 1;
  smoe_group_gather_f64(group, all, &share, one);
  for (int r = 0; r < group->n_ranks; r++) nodes += all[r];
  smoe_free(one);
  smoe_free(all);
  bench->n_nodes = (int)lround(nodes);
  bench->cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
  bench->n_ranks = group->n_ranks;
  bench->expert_ranks = model->topology.experts.n_ranks;
  bench->n_updates = options->updates;
  bench->n_moe = model->n_moe;
  bench->n_experts = model->params.n_experts;
  bench->n_slots = model->n_moe ? model->moe[0]->router.n_slots : 0;
  bench->precision = (smoe_precision)smoe_config_settings(model->config)->train.precision;
  bench->exchange_row_bytes = model->n_moe ? (double)model->moe[0]->exchange.row_bytes : 0;
  bench->vocabulary = (int64_t)model->vocabulary;
  bench->shared_parameters = smoe_params_total(&model->params, SMOE_REPLICATED);
  bench->expert_parameters = smoe_params_total(&model->params, SMOE_EXPERT);
  bench->frozen_parameters = smoe_params_total_frozen(&model->params);
}

double smoe_bench_peak(const smoe_bench *bench) {
  return bench->precision == SMOE_BF16 && isfinite(bench->core_peak_bf16) ? bench->core_peak_bf16
                                                                          : bench->core_peak;
}

/* Rates of GEMM and the most that a core can do, of the slowest rank; what the stages reach of it. */
static void measure_core(smoe_bench *bench, const smoe_group *group, const smoe_model *model) {
  smoe_core_peak peak;
  double rate[4];
  gemm_rates(rate, model);
  smoe_core_peak_measure(&peak);
  bench->core_isa = peak.fp32_isa;
  bench->core_isa_bf16 = peak.bf16_isa;
  rate[2] = peak.fp32;
  rate[3] = isnan(peak.bf16) ? 0 : peak.bf16;
  for (int i = 0; i < 4; i++) rate[i] = -rate[i];
  smoe_group_max_f64(group, rate, 4);
  bench->gemm_rate = -rate[0];
  bench->processor_rate = -rate[1];
  bench->core_peak = -rate[2];
  bench->core_peak_bf16 = rate[3] < 0 ? -rate[3] : NAN;
  const double cores = (double)group->n_ranks * smoe_threads();
  for (int s = 0; s < bench->n_stages; s++)
    bench->stage[s].peak_fraction = bench->flops / bench->stage[s].seconds / cores / smoe_bench_peak(bench);
}

/* Seconds of a forward pass in evaluation by the clock on the wall [0] and by the processor's [1]. */
static void forward_seconds(smoe_step *step, const smoe_batch *batch, bool skip_nothing, double seconds[2]) {
  const smoe_pass pass = {.seed = (uint64_t)step->settings->run.seed,
                          .stage = smoe_stage(step->model, step->settings, 0),
                          .n_targets = step->task->ops->n_targets(step->task, 0),
                          .skip_nothing = skip_nothing};
  smoe_model_begin_sums(step->model);
  smoe_group_barrier(&step->model->params.group);
  const double before[] = {smoe_seconds(), smoe_processor_seconds()};
  smoe_model_forward(step->model, batch, &pass);
  seconds[0] = smoe_seconds() - before[0];
  seconds[1] = smoe_processor_seconds() - before[1];
}

/* What skipping is worth: the same pass with and without it, in turn, before updates change the gates. Medians. */
static void measure_skips(smoe_bench *bench, smoe_step *step, const smoe_bench_options *options) {
  enum { KINDS = 4 }; /* both clocks with skipping, both without */
  const int n = smoe_model_n_skip(step->model), passes = options->updates;
  bench->evaluation_s = bench->evaluation_all_s = NAN;
  if (n == 0) return;
  const smoe_batch batch = smoe_step_read(step, 0, 0);
  double *share = smoe_alloc((size_t)n * sizeof *share), one[KINDS], middle[KINDS];
  double *seconds = smoe_alloc((size_t)(KINDS * passes) * sizeof *seconds);
  for (int i = -1; i < passes; i++) { /* the first pair warms up */
    forward_seconds(step, &batch, true, one + 2);
    forward_seconds(step, &batch, false, one);
    for (int k = 0; k < KINDS && i >= 0; k++) seconds[k * passes + i] = one[k];
  }
  smoe_group_max_f64(&step->model->params.group, seconds, KINDS * passes);
  for (int k = 0; k < KINDS; k++) middle[k] = smoe_bench_median(seconds + k * passes, passes);
  bench->evaluation_s = middle[0];
  bench->evaluation_processor_s = middle[1];
  bench->evaluation_all_s = middle[2];
  bench->evaluation_all_processor_s = middle[3];
  smoe_model_skip_shares(step->model, share);
  for (int k = 0; k < n; k++) bench->skip_share += share[k] / n;
  smoe_free(seconds);
  smoe_free(share);
}

static smoe_status run(smoe_bench *bench, smoe_model *model, smoe_task *task,
                       const smoe_bench_options *options) {
  const smoe_settings *settings = smoe_config_settings(model->config);
  const smoe_group *group = &model->params.group;
  smoe_step step;
  describe(bench, model, options);
  bench->images = smoe_task_is_images(task);
  SMOE_TRY(smoe_step_create(&step, model, task));
  smoe_params_initialise(&model->params, (uint64_t)settings->run.seed);
  bench->n_stages = model->n_moe && model->moe[0]->router.ops->two_stages ? 2 : 1;
  smoe_status status = smoe_routers_prepare(model, task);
  if (status == SMOE_OK) status = smoe_initial_values(model, task, true);
  if (status == SMOE_OK) measure_skips(bench, &step, options);
  for (int s = 0; s < bench->n_stages && status == SMOE_OK; s++)
    status = measure(&step, options, s == 0 ? 0 : settings->router.stage1_updates, &bench->stage[s]);
  const smoe_bench_stage *last = &bench->stage[bench->n_stages - 1];
  bench->save = (smoe_bench_save){NAN, NAN, NAN, NAN, NAN};
  if (status == SMOE_OK && options->save)
    status = smoe_bench_saves(&bench->save, &step, options->save,
                              (bench->n_stages == 2 ? settings->router.stage1_updates : 0) + options->warmup +
                                  options->updates,
                              last->seconds);
  smoe_step_destroy(&step);
  SMOE_TRY(status);
  /* Before the measurements below take memory of their own. */
  /* What ranks share counts in each process that reads it. */
  const double others = smoe_params_shared_others(&model->params);
  double bytes[] = {smoe_model_expected_bytes(model) + others + model->library_bytes, smoe_peak_memory()};
  smoe_group_max_f64(group, bytes, 2);
  bench->planned_bytes = bytes[0];
  bench->peak_bytes = bytes[1];
  bench->padding = (smoe_pair_padding){NAN, NAN};
  if (task->pairs.split[SMOE_TRAIN].n_pairs > 0) bench->padding = smoe_pair_sampler_padding(&task->train, 0);
  bench->flops = smoe_bench_flops(model);
  bench->flops_all = flops_of(model, true);
  measure_core(bench, group, model);
  bench->efficiency =
      bench->flops / group->n_ranks / bench->stage[bench->n_stages - 1].seconds / bench->gemm_rate;
  measure_exchange(bench, model);
  return SMOE_OK;
}

smoe_status smoe_bench_run(smoe_bench *bench, const smoe_config *config, const smoe_group *group,
                           smoe_task *task, const smoe_bench_options *options) {
  *bench = (smoe_bench){0};
  smoe_model_shape shape = {.training = true};
  SMOE_TRY(smoe_group_agree(group, task->ops->shape(task, &shape, true)));
  smoe_model *model = NULL;
  smoe_status status = smoe_model_create(&model, config, group, &shape, false);
  if (status == SMOE_OK)
    model->copy_bytes = options->save ? (double)smoe_params_state_bytes(&model->params) : 0;
  if (status == SMOE_OK && options->trace)
    status = smoe_group_agree(group, smoe_phase_trace_begin(options->trace, group->rank));
  if (status == SMOE_OK) status = run(bench, model, task, options);
  if (status == SMOE_OK && options->trace) status = smoe_group_agree(group, smoe_phase_trace_end());
  smoe_model_destroy(model);
  return status;
}

void smoe_bench_release(smoe_bench *bench) {
  for (int s = 0; s < 2; s++) {
    smoe_free(bench->stage[s].update_seconds);
    smoe_free(bench->stage[s].update_processor);
    smoe_free(bench->stage[s].update_loss);
    smoe_free(bench->stage[s].load);
  }
  *bench = (smoe_bench){0};
}
