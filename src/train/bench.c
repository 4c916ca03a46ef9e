#include "stablemoe/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stablemoe/kernel.h"
#include "stablemoe/route_facts.h"
#include "stablemoe/timer.h"

/* One product of the model: op(a) [m, k] times op(b) [k, n], `count` times in an update of one rank. */
typedef struct product {
  bool transpose_a, transpose_b;
  size_t m, n, k;
  double count;
} product;

enum { PRODUCTS_MAX = 64 };
typedef struct product_list {
  int n;
  product at[PRODUCTS_MAX];
} product_list;

/* The three products of a linear map on n rows: forward, input's and weight's backward. */
static void add_linear(product_list *list, size_t n, size_t c, size_t o, double count) {
  list->at[list->n++] = (product){false, true, n, o, c, count};
  list->at[list->n++] = (product){false, false, n, c, o, count};
  list->at[list->n++] = (product){true, false, o, c, n, count};
}

/* The matrix products of one rank's update, but for attention's. */
static product_list products_of(const smoe_model *model) {
  const smoe_settings *settings = smoe_config_settings(model->config);
  const size_t n = model->tokens.lane_tokens, c = model->width;
  const size_t f = (size_t)settings->model.inner, fe = (size_t)settings->moe.inner;
  const double calls = (double)settings->train.micro_batches * model->tokens.n_lanes;
  product_list list = {0};
  add_linear(&list, n, c, 3 * c, calls * model->n_blocks);
  add_linear(&list, n, c, c, calls * model->n_blocks);
  add_linear(&list, n, c, f, calls * model->n_blocks);
  add_linear(&list, n, f, c, calls * model->n_blocks);
  add_linear(&list, model->head_rows, c, model->vocabulary, calls * (double)n / (double)model->head_rows);
  if (model->n_moe) {
    const int64_t slots = model->tokens.n_global * model->moe[0].router.n_slots;
    const size_t rows = (size_t)(slots / settings->moe.experts);
    const double expert_calls = (double)(settings->train.micro_batches * settings->moe.sublayers) *
                                model->n_moe * (double)settings->moe.experts / model->topology.world.n_ranks;
    add_linear(&list, rows, c, fe, expert_calls);
    add_linear(&list, rows, fe, c, expert_calls);
  }
  return list;
}

static double product_flops(const product *p) {
  return 2.0 * (double)p->m * (double)p->n * (double)p->k;
}

/* Attention once over the causal half: q k^T and p v forward, four products of that size backward. */
static double attention_flops(const smoe_model *model) {
  const smoe_settings *settings = smoe_config_settings(model->config);
  const double t = (double)model->tokens.context;
  const double sequences = (double)settings->train.batch_sequences;
  return 3 * 2 * 2.0 * sequences * model->n_blocks * (double)model->width * t * (t + 1) / 2;
}

double smoe_bench_flops(const smoe_model *model) {
  const product_list list = products_of(model);
  double sum = 0;
  for (int i = 0; i < list.n; i++) sum += list.at[i].count * product_flops(&list.at[i]);
  return sum * model->topology.world.n_ranks + attention_flops(model);
}

/* Least seconds of a call by the clock on the wall [0] and by the processor's [1]. */
static void seconds_of_product(double *least, const product *p, smoe_real *a, smoe_real *b, smoe_real *c) {
  enum { REPEATS = 3 };
  const int calls = 1 + (int)(2e8 / product_flops(p));
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
  const product_list list = products_of(model);
  size_t most = 0;
  for (int i = 0; i < list.n; i++) {
    const product *p = &list.at[i];
    const size_t sizes[] = {p->m * p->k, p->k * p->n, p->m * p->n};
    for (int s = 0; s < 3; s++)
      if (sizes[s] > most) most = sizes[s];
  }
  smoe_real *memory = smoe_alloc(3 * most * sizeof *memory);
  for (size_t i = 0; i < 3 * most; i++) memory[i] = (smoe_real)(i % 7) - 3;
  double flops = 0, seconds[2] = {0};
  for (int i = 0; i < list.n; i++) {
    const product *p = &list.at[i];
    if (p->m == 0 || p->n == 0 || p->k == 0) continue;
    double least[2];
    seconds_of_product(least, p, memory, memory + most, memory + 2 * most);
    flops += p->count * product_flops(p);
    for (int clock = 0; clock < 2; clock++) seconds[clock] += p->count * least[clock];
  }
  smoe_free(memory);
  for (int clock = 0; clock < 2; clock++) rate[clock] = flops / seconds[clock];
}

static int compare_doubles(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double rank_imbalance(const smoe_model *model) {
  const smoe_moe_layer *moe = &model->moe[0];
  const int g = model->topology.experts.n_ranks, e = moe->router.n_experts;
  double max = 0, sum = 0;
  for (int r = 0; r < g; r++) {
    double rows = 0;
    for (int i = smoe_expert_first(e, r, g); i < smoe_expert_first(e, r + 1, g); i++)
      rows += (double)moe->load[smoe_expert_at(&model->topology, i)];
    max = fmax(max, rows);
    sum += rows;
  }
  return max / (sum / g);
}

static void add_loads(double *sum, const smoe_model *model, double factor) {
  const size_t n_experts = (size_t)model->params.n_experts;
  for (int m = 0; m < model->n_moe; m++)
    for (size_t e = 0; e < n_experts; e++)
      sum[(size_t)m * n_experts + e] += factor * (double)model->moe[m].load[e];
}

static double median(const double *values, int n) {
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
  stage->seconds = median(seconds, options->updates);
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
  link->bytes = (double)(g * rows * model->width * sizeof(smoe_real));
  link->seconds = smoe_exchange_bare_seconds(&model->moe[0].exchange, rows, REPEATS);
  smoe_group_max_f64(&model->params.group, &link->seconds, 1);
}

static void measure_exchange(smoe_bench *bench, const smoe_model *model) {
  const smoe_settings *settings = smoe_config_settings(model->config);
  const int g = model->topology.experts.n_ranks;
  bench->exchange_rate = bench->bare_rate = NAN;
  if (model->n_moe == 0 || g == 1) return;
  bench->exchange_rows = (double)model->tokens.n_replica / g * model->moe[0].router.n_slots;
  const double bytes = bench->exchange_rows * (double)model->width * sizeof(smoe_real);
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
  bench->n_slots = model->n_moe ? model->moe[0].router.n_slots : 0;
  bench->vocabulary = (int64_t)model->vocabulary;
  bench->shared_parameters = smoe_params_total(&model->params, SMOE_REPLICATED);
  bench->expert_parameters = smoe_params_total(&model->params, SMOE_EXPERT);
}

static smoe_status run(smoe_bench *bench, smoe_model *model, const smoe_corpus *corpus,
                       const smoe_bench_options *options) {
  const smoe_settings *settings = smoe_config_settings(model->config);
  const smoe_group *group = &model->params.group;
  smoe_step step;
  describe(bench, model, options);
  SMOE_TRY(smoe_step_create(&step, model, corpus, settings));
  smoe_params_initialise(&model->params, (uint64_t)settings->run.seed);
  bench->n_stages = model->n_moe && model->moe[0].router.ops->two_stages ? 2 : 1;
  smoe_status status = smoe_routers_prepare(model, corpus);
  for (int s = 0; s < bench->n_stages && status == SMOE_OK; s++)
    status = measure(&step, options, s == 0 ? 0 : settings->router.stage1_updates, &bench->stage[s]);
  smoe_step_destroy(&step);
  SMOE_TRY(status);
  /* Before the measurements below take memory of their own. */
  double bytes[] = {smoe_model_expected_bytes(model) + model->library_bytes, smoe_peak_memory()};
  smoe_group_max_f64(group, bytes, 2);
  bench->planned_bytes = bytes[0];
  bench->peak_bytes = bytes[1];
  bench->flops = smoe_bench_flops(model);
  double rate[2];
  gemm_rates(rate, model);
  for (int clock = 0; clock < 2; clock++) rate[clock] = -rate[clock];
  smoe_group_max_f64(group, rate, 2); /* the slowest rank's */
  bench->gemm_rate = -rate[0];
  bench->processor_rate = -rate[1];
  bench->efficiency =
      bench->flops / group->n_ranks / bench->stage[bench->n_stages - 1].seconds / bench->gemm_rate;
  measure_exchange(bench, model);
  return SMOE_OK;
}

smoe_status smoe_bench_run(smoe_bench *bench, const smoe_config *config, const smoe_group *group,
                           const smoe_corpus *corpus, const smoe_bench_options *options) {
  const smoe_settings *settings = smoe_config_settings(config);
  *bench = (smoe_bench){0};
  const int64_t parts = settings->train.lanes * settings->train.micro_batches;
  const smoe_model_shape shape = {.vocabulary = corpus->vocabulary,
                                  .n_lanes = (int)settings->train.lanes,
                                  .lane_sequences = (size_t)(settings->train.batch_sequences / parts),
                                  .training = true};
  smoe_model *model = NULL;
  smoe_status status = smoe_model_create(&model, config, group, &shape, false);
  if (status == SMOE_OK && options->trace)
    status = smoe_group_agree(group, smoe_phase_trace_begin(options->trace, group->rank));
  if (status == SMOE_OK) status = run(bench, model, corpus, options);
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
