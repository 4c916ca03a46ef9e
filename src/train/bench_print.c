#include <math.h>

#include "stablemoe/bench.h"

static const double MIB = 1 << 20;

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

static void print_table(const smoe_bench *bench, const smoe_settings *settings, int n_ranks, FILE *out) {
  fprintf(out, "%d rank%s; width %lld, %lld blocks, context %lld, %lld MoE layer%s of %lld experts\n",
          n_ranks, n_ranks == 1 ? "" : "s", (long long)settings->model.width,
          (long long)settings->model.blocks, (long long)settings->model.context,
          (long long)settings->moe.layers, settings->moe.layers == 1 ? "" : "s",
          (long long)settings->moe.experts);
  for (int s = 0; s < bench->n_stages; s++) {
    const smoe_bench_stage *stage = &bench->stage[s];
    fprintf(out, "  stage %d      %10.1f ms per update  %10.0f tokens/s  %8.2f GFLOP/s  loss %.9g\n",
            stage->stage, 1e3 * stage->seconds, stage->tokens_per_s, 1e-9 * bench->flops / stage->seconds,
            stage->loss);
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
  if (isfinite(bench->evaluation_s))
    fprintf(out,
            "  evaluation   %10.2f ms per pass, %.2f of the gated rows ran; %.2f ms if all ran: %.2f times "
            "as fast\n",
            1e3 * bench->evaluation_s, bench->skip_share, 1e3 * bench->evaluation_all_s,
            bench->evaluation_all_s / bench->evaluation_s);
  if (isfinite(bench->exchange_rate))
    fprintf(out,
            "  exchange     %10.2f GB/s, waiting included; a bare MPI_Alltoallv of this size %.2f GB/s\n",
            1e-9 * bench->exchange_rate, 1e-9 * bench->bare_rate);
  fprintf(out, "  memory       %10.1f MiB planned, %.1f MiB peak: %.2f\n", bench->planned_bytes / MIB,
          bench->peak_bytes / MIB, bench->peak_bytes / bench->planned_bytes);
  print_phases(bench, out);
}

/* JSON has no NaN. */
static void number(FILE *out, const char *name, double value) {
  if (isfinite(value))
    fprintf(out, "\"%s\": %.9g, ", name, value);
  else
    fprintf(out, "\"%s\": null, ", name);
}

static void array(FILE *out, const char *name, const double *values, int n, const char *format) {
  fprintf(out, "\"%s\": [", name);
  for (int i = 0; i < n; i++) {
    if (i) fputs(", ", out);
    fprintf(out, format, values[i]);
  }
  fputs("], ", out);
}

static void print_stage(const smoe_bench *bench, const smoe_bench_stage *stage, FILE *out) {
  fprintf(out, "{\"stage\": %d, ", stage->stage);
  number(out, "seconds", stage->seconds);
  number(out, "tokens_per_s", stage->tokens_per_s);
  number(out, "peak_fraction", stage->peak_fraction);
  number(out, "gemm_fraction", bench->flops / bench->n_ranks / stage->seconds / bench->gemm_rate);
  number(out, "load_max_over_mean", stage->load_max_over_mean);
  array(out, "update_seconds", stage->update_seconds, bench->n_updates, "%.9g");
  array(out, "update_processor_seconds", stage->update_processor, bench->n_updates, "%.9g");
  /* Every bit of a double: equal texts are equal losses. */
  array(out, "losses", stage->update_loss, bench->n_updates, "%.17g");
  fputs("\"loads\": [", out);
  for (int m = 0; m < bench->n_moe; m++) {
    fputs(m ? ", [" : "[", out);
    for (int e = 0; e < bench->n_experts; e++)
      fprintf(out, "%s%.9g", e ? ", " : "", stage->load[m * bench->n_experts + e]);
    fputc(']', out);
  }
  fprintf(out, "], \"loss\": %.17g, \"phase_seconds\": {", stage->loss);
  for (int p = 0; p < SMOE_PHASES; p++)
    fprintf(out, "%s\"%s\": %.9g", p ? ", " : "", smoe_phase_name((smoe_phase_kind)p), stage->phase[p]);
  fputs("}}", out);
}

/* What was measured, for those who compare or extrapolate. */
static void print_sizes(const smoe_bench *bench, const smoe_settings *settings, FILE *out) {
  fprintf(out, "\"nodes\": %d, \"cores_per_node\": %d, \"expert_ranks\": %d, ", bench->n_nodes, bench->cores,
          bench->expert_ranks);
  fprintf(out, "\"model\": {\"width\": %lld, \"blocks\": %lld, \"heads\": %lld, \"inner\": %lld, ",
          (long long)settings->model.width, (long long)settings->model.blocks,
          (long long)settings->model.heads, (long long)settings->model.inner);
  fprintf(out,
          "\"context\": %lld, \"vocabulary\": %lld, \"moe_layers\": %d, \"experts\": %d, \"slots\": %d, ",
          (long long)settings->model.context, (long long)bench->vocabulary, bench->n_moe, bench->n_experts,
          bench->n_slots);
  fprintf(out, "\"sublayers\": %lld, \"moe_inner\": %lld}, ", (long long)settings->moe.sublayers,
          (long long)settings->moe.inner);
  fprintf(out, "\"batch\": {\"sequences\": %lld, \"micro_batches\": %lld, \"lanes\": %lld}, ",
          (long long)settings->train.batch_sequences, (long long)settings->train.micro_batches,
          (long long)settings->train.lanes);
  fprintf(out, "\"parameters\": {\"shared\": %lld, \"experts\": %lld, \"frozen\": %lld}, ",
          (long long)bench->shared_parameters, (long long)bench->expert_parameters,
          (long long)bench->frozen_parameters);
  fputs("\"alltoallv\": [", out);
  for (int i = 0; i < bench->n_links; i++)
    fprintf(out, "%s{\"bytes\": %.0f, \"seconds\": %.9g}", i ? ", " : "", bench->link[i].bytes,
            bench->link[i].seconds);
  fputs("], ", out);
}

static void print_json(const smoe_bench *bench, const smoe_settings *settings, int n_ranks, FILE *out) {
  fprintf(out, "{\"ranks\": %d, ", n_ranks);
  print_sizes(bench, settings, out);
  fputs("\"stages\": [", out);
  for (int s = 0; s < bench->n_stages; s++) {
    if (s) fputs(", ", out);
    print_stage(bench, &bench->stage[s], out);
  }
  fputs("], ", out);
  fprintf(out, "\"precision\": \"%s\", \"exchange_row_bytes\": %.0f, ", smoe_precision_name(bench->precision),
          bench->exchange_row_bytes);
  number(out, "flops_per_update", bench->flops);
  number(out, "flops_if_all_learned", bench->flops_all);
  if (isfinite(bench->evaluation_s)) {
    number(out, "evaluation_seconds", bench->evaluation_s);
    number(out, "evaluation_seconds_without_skipping", bench->evaluation_all_s);
    number(out, "skip_ran_share", bench->skip_share);
  }
  number(out, "gemm_flops_per_s", bench->gemm_rate);
  number(out, "gemm_flops_per_processor_s", bench->processor_rate);
  number(out, "core_peak_gflops", 1e-9 * bench->core_peak);
  number(out, "core_peak_bf16_gflops", 1e-9 * bench->core_peak_bf16);
  number(out, "efficiency", bench->efficiency);
  number(out, "exchange_bytes_per_s", bench->exchange_rate);
  number(out, "bare_alltoallv_bytes_per_s", bench->bare_rate);
  number(out, "planned_bytes", bench->planned_bytes);
  fprintf(out, "\"peak_bytes\": %.9g}\n", bench->peak_bytes);
}

void smoe_bench_print(const smoe_bench *bench, const smoe_settings *settings, int n_ranks, bool json,
                      FILE *out) {
  if (json)
    print_json(bench, settings, n_ranks, out);
  else
    print_table(bench, settings, n_ranks, out);
}
