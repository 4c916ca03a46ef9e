#include <math.h>
#include <string.h>

#include "stablemoe/bench.h"
#include "stablemoe/json.h"

static const double MIB = 1 << 20;

/* Losses keep every bit of a double: equal texts are equal losses. */
enum { DIGITS = 9, LOSS_DIGITS = 17 };

static void print_phases(const smoe_bench *bench, FILE *out) {
  fprintf(out, "\n  %-12s", "phase");
  for (int s = 0; s < bench->n_stages; s++) fprintf(out, "   stage %d ms      %%", bench->stage[s].stage);
  fputc('\n', out);
  double sum[2] = {0};
  for (int p = 0; p < SMOE_PHASES; p++)
    for (int s = 0; s < bench->n_stages; s++) sum[s] += bench->stage[s].phase[p];
  for (int p = 0; p <= SMOE_PHASES; p++) {
    fprintf(out, "  %-12s", p < SMOE_PHASES ? smoe_phase_name((smoe_phase_kind)p) : "sum");
    for (int s = 0; s < bench->n_stages; s++) {
      const double seconds = p < SMOE_PHASES ? bench->stage[s].phase[p] : sum[s];
      fprintf(out, "  %12.2f  %5.1f", 1e3 * seconds, 100 * seconds / sum[s]);
    }
    fputc('\n', out);
  }
}

/* Seconds, and how many updates take as long. */
static void print_cost(FILE *out, double seconds, double update_s) {
  fprintf(out, "%.1f ms (%.2f updates)", 1e3 * seconds, seconds / update_s);
}

static void print_save(const smoe_bench *bench, FILE *out) {
  const smoe_bench_save *save = &bench->save;
  const double update_s = bench->stage[bench->n_stages - 1].seconds;
  if (!isfinite(save->wait_s)) return;
  fputs("  checkpoint   updates wait ", out);
  print_cost(out, save->wait_s, update_s);
  fprintf(out, "; written in the background");
  if (!isfinite(save->held_s)) {
    fputs(": no memory for the copy\n", out);
    return;
  }
  fputs(" they wait ", out);
  print_cost(out, save->held_s, update_s);
  fputs(",\n               the next ", out);
  fprintf(out, "%.0f take ", save->updates);
  print_cost(out, save->extra_s, update_s);
  fprintf(out, " longer with that; copy %.1f MiB per rank\n", save->copy_bytes / MIB);
}

static void print_table(const smoe_bench *bench, const smoe_settings *settings, int n_ranks, FILE *out) {
  fprintf(out, "%d rank%s; width %lld, ", n_ranks, n_ranks == 1 ? "" : "s", (long long)settings->model.width);
  if (strcmp(settings->model.family, "cnn") != 0)
    fprintf(out, "%lld blocks, ", (long long)settings->model.blocks);
  fprintf(out, "context %lld, ", (long long)settings->model.context);
  if (bench->n_moe == 0)
    fputs("no MoE layer\n", out);
  else
    fprintf(out, "%d MoE layer%s of %d experts\n", bench->n_moe, bench->n_moe == 1 ? "" : "s",
            bench->n_experts);
  for (int s = 0; s < bench->n_stages; s++) {
    const smoe_bench_stage *stage = &bench->stage[s];
    fprintf(out, "  stage %d      %10.1f ms per update  %10.0f %s/s  %8.2f GFLOP/s  loss %.9g\n",
            stage->stage, 1e3 * stage->seconds, stage->tokens_per_s, bench->images ? "images" : "tokens",
            1e-9 * bench->flops / stage->seconds, stage->loss);
    if (n_ranks > 1 && isfinite(stage->load_max_over_mean))
      fprintf(out, "               busiest rank's rows over the mean: %.3f\n", stage->load_max_over_mean);
  }
  fprintf(out,
          "  GEMM         %10.2f GFLOP/s per rank on the model's shapes; the update reaches %.3f of it\n",
          1e-9 * bench->gemm_rate, bench->efficiency);
  fprintf(out, "  core's peak  %10.2f GFLOP/s in fp32 (%s)", 1e-9 * bench->core_peak, bench->core_isa);
  if (isfinite(bench->core_peak_bf16))
    fprintf(out, ", %.2f in bf16 (%s)", 1e-9 * bench->core_peak_bf16, bench->core_isa_bf16);
  fprintf(out, "\n               the update, trained in %s, reaches %.3f of %.2f\n",
          smoe_precision_name(bench->precision), bench->stage[bench->n_stages - 1].peak_fraction,
          1e-9 * smoe_bench_peak(bench));
  if (bench->frozen_parameters > 0)
    fprintf(out, "  frozen       %10lld of %lld parameters; %.2f GFLOP per update, %.2f if all learned\n",
            (long long)bench->frozen_parameters,
            (long long)(bench->shared_parameters + bench->expert_parameters), 1e-9 * bench->flops,
            1e-9 * bench->flops_all);
  if (isfinite(bench->padding.target))
    fprintf(out, "  padding      %10.1f %% of the source rows, %.1f %% of the target rows\n",
            100 * bench->padding.source, 100 * bench->padding.target);
  if (isfinite(bench->evaluation_s))
    fprintf(out,
            "  evaluation   %10.2f ms per pass, %.2f of the gated rows ran; %.2f ms if all ran: %.2f times "
            "as fast (%.2f by the processor's clock)\n",
            1e3 * bench->evaluation_s, bench->skip_share, 1e3 * bench->evaluation_all_s,
            bench->evaluation_all_s / bench->evaluation_s,
            bench->evaluation_all_processor_s / bench->evaluation_processor_s);
  if (isfinite(bench->exchange_rate))
    fprintf(out,
            "  exchange     %10.2f GB/s, waiting included; a bare MPI_Alltoallv of this size %.2f GB/s\n",
            1e-9 * bench->exchange_rate, 1e-9 * bench->bare_rate);
  print_save(bench, out);
  fprintf(out, "  memory       %10.1f MiB planned, %.1f MiB peak: %.2f\n", bench->planned_bytes / MIB,
          bench->peak_bytes / MIB, bench->peak_bytes / bench->planned_bytes);
  print_phases(bench, out);
}

/* ---- JSON ---- */

static void number(smoe_json *json, const char *key, double value) {
  smoe_json_real(json, key, value, DIGITS);
}

static void write_stage(smoe_json *json, const smoe_bench *bench, const smoe_bench_stage *stage) {
  const size_t n = (size_t)bench->n_updates, experts = (size_t)bench->n_experts;
  smoe_json_object(json, NULL);
  smoe_json_int(json, "stage", stage->stage);
  number(json, "seconds", stage->seconds);
  number(json, "tokens_per_s", stage->tokens_per_s);
  number(json, "peak_fraction", stage->peak_fraction);
  number(json, "gemm_fraction", bench->flops / bench->n_ranks / stage->seconds / bench->gemm_rate);
  number(json, "load_max_over_mean", stage->load_max_over_mean);
  smoe_json_reals(json, "update_seconds", stage->update_seconds, n, DIGITS);
  smoe_json_reals(json, "update_processor_seconds", stage->update_processor, n, DIGITS);
  smoe_json_reals(json, "losses", stage->update_loss, n, LOSS_DIGITS);
  smoe_json_array(json, "loads");
  for (size_t m = 0; m < (size_t)bench->n_moe; m++)
    smoe_json_reals(json, NULL, stage->load + m * experts, experts, DIGITS);
  smoe_json_end(json);
  smoe_json_real(json, "loss", stage->loss, LOSS_DIGITS);
  smoe_json_object(json, "phase_seconds");
  for (int p = 0; p < SMOE_PHASES; p++) number(json, smoe_phase_name((smoe_phase_kind)p), stage->phase[p]);
  smoe_json_end(json);
  smoe_json_end(json);
}

static void write_model(smoe_json *json, const smoe_bench *bench, const smoe_settings *settings) {
  smoe_json_object(json, "model");
  smoe_json_int(json, "width", settings->model.width);
  smoe_json_int(json, "blocks", settings->model.blocks);
  smoe_json_int(json, "heads", settings->model.heads);
  smoe_json_int(json, "inner", settings->model.inner);
  smoe_json_int(json, "context", settings->model.context);
  smoe_json_int(json, "vocabulary", bench->vocabulary);
  smoe_json_int(json, "moe_layers", bench->n_moe);
  smoe_json_int(json, "experts", bench->n_experts);
  smoe_json_int(json, "slots", bench->n_slots);
  smoe_json_int(json, "sublayers", settings->moe.sublayers);
  smoe_json_int(json, "moe_inner", settings->moe.inner);
  smoe_json_end(json);
}

/* What was measured, for those who compare or extrapolate. */
static void write_sizes(smoe_json *json, const smoe_bench *bench, const smoe_settings *settings) {
  smoe_json_int(json, "nodes", bench->n_nodes);
  smoe_json_int(json, "cores_per_node", bench->cores);
  smoe_json_int(json, "expert_ranks", bench->expert_ranks);
  write_model(json, bench, settings);
  smoe_json_object(json, "batch");
  smoe_json_int(json, "sequences", settings->train.batch_sequences);
  smoe_json_int(json, "micro_batches", settings->train.micro_batches);
  smoe_json_int(json, "lanes", settings->train.lanes);
  smoe_json_end(json);
  smoe_json_object(json, "parameters");
  smoe_json_int(json, "shared", bench->shared_parameters);
  smoe_json_int(json, "experts", bench->expert_parameters);
  smoe_json_int(json, "frozen", bench->frozen_parameters);
  smoe_json_end(json);
  smoe_json_array(json, "alltoallv");
  for (int i = 0; i < bench->n_links; i++) {
    smoe_json_object(json, NULL);
    smoe_json_fixed(json, "bytes", bench->link[i].bytes, 0);
    number(json, "seconds", bench->link[i].seconds);
    smoe_json_end(json);
  }
  smoe_json_end(json);
}

static void write_rates(smoe_json *json, const smoe_bench *bench) {
  number(json, "flops_per_update", bench->flops);
  if (isfinite(bench->padding.target)) {
    number(json, "source_padding", bench->padding.source);
    number(json, "target_padding", bench->padding.target);
  }
  number(json, "flops_if_all_learned", bench->flops_all);
  if (isfinite(bench->evaluation_s)) {
    number(json, "evaluation_seconds", bench->evaluation_s);
    number(json, "evaluation_seconds_without_skipping", bench->evaluation_all_s);
    number(json, "evaluation_processor_seconds", bench->evaluation_processor_s);
    number(json, "evaluation_processor_seconds_without_skipping", bench->evaluation_all_processor_s);
    number(json, "skip_ran_share", bench->skip_share);
  }
  number(json, "gemm_flops_per_s", bench->gemm_rate);
  number(json, "gemm_flops_per_processor_s", bench->processor_rate);
  number(json, "core_peak_gflops", 1e-9 * bench->core_peak);
  number(json, "core_peak_bf16_gflops", 1e-9 * bench->core_peak_bf16);
  number(json, "efficiency", bench->efficiency);
  number(json, "exchange_bytes_per_s", bench->exchange_rate);
  number(json, "bare_alltoallv_bytes_per_s", bench->bare_rate);
  if (isfinite(bench->save.wait_s)) {
    smoe_json_object(json, "checkpoint");
    number(json, "wait_seconds", bench->save.wait_s);
    number(json, "background_wait_seconds", bench->save.held_s);
    number(json, "background_extra_seconds", bench->save.extra_s);
    number(json, "background_updates", bench->save.updates);
    number(json, "copy_bytes", bench->save.copy_bytes);
    smoe_json_end(json);
  }
  number(json, "planned_bytes", bench->planned_bytes);
  number(json, "peak_bytes", bench->peak_bytes);
}

static void print_json(const smoe_bench *bench, const smoe_settings *settings, int n_ranks, FILE *out) {
  smoe_json json;
  smoe_json_begin(&json, out, 0);
  smoe_json_object(&json, NULL);
  smoe_json_int(&json, "ranks", n_ranks);
  write_sizes(&json, bench, settings);
  smoe_json_array(&json, "stages");
  for (int s = 0; s < bench->n_stages; s++) write_stage(&json, bench, &bench->stage[s]);
  smoe_json_end(&json);
  smoe_json_text(&json, "precision", smoe_precision_name(bench->precision));
  smoe_json_fixed(&json, "exchange_row_bytes", bench->exchange_row_bytes, 0);
  write_rates(&json, bench);
  smoe_json_end(&json);
  smoe_json_finish(&json);
}

void smoe_bench_print(const smoe_bench *bench, const smoe_settings *settings, int n_ranks, bool json,
                      FILE *out) {
  if (json)
    print_json(bench, settings, n_ranks, out);
  else
    print_table(bench, settings, n_ranks, out);
}
