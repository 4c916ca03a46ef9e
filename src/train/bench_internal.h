/** Parts of a measurement that are in files of their own. */
#ifndef STABLEMOE_TRAIN_BENCH_INTERNAL_H
#define STABLEMOE_TRAIN_BENCH_INTERNAL_H

#include "stablemoe/bench.h"

/** The median of n values. Local. */
double smoe_bench_median(const double *values, int n);

/** Save a model in both ways, in a directory of its own below `directory`, which is gone afterwards.
 *
 *  Collective.
 *  first     in  number of the next update
 *  update_s  in  seconds of an update beside which nothing is written
 *  Errors:  agreed; SMOE_ERR_IO.
 */
smoe_status smoe_bench_saves(smoe_bench_save *out, smoe_step *step, const char *directory, int64_t first,
                             double update_s);

#endif
