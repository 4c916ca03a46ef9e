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

static void print_json(const smoe_bench *bench, int n_ranks, FILE *out) {
  fprintf(out, "{\"ranks\": %d, \"stages\": [", n_ranks);
  for (int s = 0; s < bench->n_stages; s++) {
    const smoe_bench_stage *stage = &bench->stage[s];
    fprintf(out, "%s{\"stage\": %d, ", s ? ", " : "", stage->stage);
    number(out, "seconds", stage->seconds);
    number(out, "tokens_per_s", stage->tokens_per_s);
    number(out, "load_max_over_mean", stage->load_max_over_mean);
    fprintf(out, "\"loss\": %.17g, \"phase_seconds\": {", stage->loss);
    for (int p = 0; p < SMOE_PHASES; p++)
      fprintf(out, "%s\"%s\": %.9g", p ? ", " : "", smoe_phase_name((smoe_phase_kind)p), stage->phase[p]);
    fputs("}}", out);
  }
  fputs("], ", out);
  number(out, "flops_per_update", bench->flops);
  number(out, "gemm_flops_per_s", bench->gemm_rate);
  number(out, "efficiency", bench->efficiency);
  number(out, "exchange_bytes_per_s", bench->exchange_rate);
  number(out, "bare_alltoallv_bytes_per_s", bench->bare_rate);
  number(out, "planned_bytes", bench->planned_bytes);
  fprintf(out, "\"peak_bytes\": %.9g}\n", bench->peak_bytes);
}

void smoe_bench_print(const smoe_bench *bench, const smoe_settings *settings, int n_ranks, bool json,
                      FILE *out) {
  if (json)
    print_json(bench, n_ranks, out);
  else
    print_table(bench, settings, n_ranks, out);
}
