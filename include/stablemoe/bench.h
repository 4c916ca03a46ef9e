/** Measuring a configuration: speed of an update beside what the machine's GEMM allows. */
#ifndef STABLEMOE_BENCH_H
#define STABLEMOE_BENCH_H

#include <stdio.h>

#include "stablemoe/phase.h"
#include "stablemoe/step.h"

/** Figures of one stage; the same on all ranks. */
typedef struct smoe_bench_stage {
  int stage;
  double seconds;            /**< of an update: median over the updates of the slowest rank's time */
  double tokens_per_s;       /**< all ranks together */
  double peak_fraction;      /**< model FLOP per second over the peak of all cores that threads run on, in the
                                  precision of training; in fp32 where the core has no bf16 */
  double phase[SMOE_PHASES]; /**< seconds of an update, mean over ranks */
  double load_max_over_mean; /**< rows of the busiest rank over the mean */
  double loss;               /**< of the last update: to see that two runs computed the same */
  double *update_seconds;    /**< [updates] the slowest rank's time of each */
  double
      *update_processor; /**< [updates] the busiest rank's processor seconds of each, its threads together */
  double *update_loss;   /**< [updates] */
  double *load;          /**< [M, E] rows per update and expert over all ranks, mean over the updates */
} smoe_bench_stage;

/** A bare MPI_Alltoallv in the replica. */
typedef struct smoe_bench_link {
  double bytes;   /**< that a rank sends, its own part included */
  double seconds; /**< best of several, of the slowest rank */
} smoe_bench_link;

/** What a checkpoint costs the updates of a run; medians of a few saves, NaN where none was made. */
typedef struct smoe_bench_save {
  double copy_bytes; /**< of the rank that owns most */
  double wait_s;     /**< train.save: wait: seconds until updates go on, those of the slowest rank */
  double held_s;     /**< train.save: background: the same; NaN also where there is no memory for the copy */
  double extra_s;    /**< what the save adds in all to the updates that run until the file has its name */
  double updates;    /**< those */
} smoe_bench_save;

enum { SMOE_BENCH_LINKS = 12 };

typedef struct smoe_bench {
  int n_stages;
  smoe_bench_stage stage[2];
  double flops;          /**< model FLOP of an update, forward and backward, all ranks */
  double gemm_rate;      /**< FLOP/s of one rank's sgemm on the model's own shapes, weighted by FLOP */
  double processor_rate; /**< the same per processor second: of use where other programs want the cores */
  double
      core_peak; /**< FLOP/s of a core at most, fp32: multiply-adds on registers (core_peak.h); the slowest rank's */
  double core_peak_bf16;                /**< the same with operands of bf16; NaN if a rank's core has none */
  const char *core_isa, *core_isa_bf16; /**< their instructions, on rank 0 */
  double efficiency;                    /**< flops / ranks / seconds / gemm_rate, of the last stage */
  double exchange_rows;                 /**< rows a rank sends in a call, on average */
  double exchange_rate;                 /**< bytes/s of the transfers; NaN on one rank */
  double bare_rate;                     /**< bytes/s of a bare MPI_Alltoallv of that size */
  int n_links;                          /**< 0 on one rank */
  smoe_bench_link link[SMOE_BENCH_LINKS]; /**< from one row per pair of ranks to the model's own size */
  double flops_all;                       /**< of an update if all parameters learned */
  double evaluation_s,
      evaluation_all_s; /**< forward pass with sublayers skipped, and without; NaN: no gates */
  double evaluation_processor_s, evaluation_all_processor_s; /**< of the busiest rank's processor seconds */
  double skip_share;                                         /**< share of rows behind gates that ran */
  smoe_bench_save save;
  double planned_bytes, peak_bytes;          /**< per rank, the largest */
  int n_updates, n_moe, n_experts, n_slots;  /**< sizes of the arrays in stage[]; K */
  int n_ranks, expert_ranks, n_nodes, cores; /**< R; G; machines; cores of rank 0's machine */
  smoe_precision precision;                  /**< of training */
  bool images;               /**< what is trained on: images, which tokens_per_s counts then */
  smoe_pair_padding padding; /**< translation: of an epoch's batches; NaN for other tasks */
  double exchange_row_bytes; /**< of a row that travels; 0 without MoE layers */
  int64_t vocabulary, shared_parameters, expert_parameters, frozen_parameters;
} smoe_bench;

/** The peak that peak_fraction is a share of, FLOP per second of a core. Local. */
double smoe_bench_peak(const smoe_bench *bench);

typedef struct smoe_bench_options {
  int warmup, updates; /**< per stage */
  const char *trace;   /**< path, or NULL */
  const char *save;    /**< directory to save to, or NULL */
} smoe_bench_options;

/** FLOP of one update: products only, causal attention at its half square, backward twice forward. Local. */
double smoe_bench_flops(const smoe_model *model);

/** FLOP of the GEMM calls of some work, without work->other. Local. */
double smoe_bench_product_flops(const smoe_work *work);

/** Run and measure.
 *
 *  Collective over group. the task may be synthetic. Errors: agreed on all ranks.
 *  bench is to be given back by smoe_bench_release, also after an error.
 */
smoe_status smoe_bench_run(smoe_bench *bench, const smoe_config *config, const smoe_group *group,
                           smoe_task *task, const smoe_bench_options *options);

/** Give back what smoe_bench_run took. Local. */
void smoe_bench_release(smoe_bench *bench);

/** Print a table for people, or one JSON object. Local. */
void smoe_bench_print(const smoe_bench *bench, const smoe_settings *settings, int n_ranks, bool json,
                      FILE *out);

#endif
