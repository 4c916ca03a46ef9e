/** A metrics.csv that a resumed run finds, maybe of another version of the program. */
#ifndef STABLEMOE_TRAIN_METRICS_ADOPT_H
#define STABLEMOE_TRAIN_METRICS_ADOPT_H

#include <stdint.h>

#include "stablemoe/status.h"

/** Leave of the file at path a table with this header and the lines up to `update`.
 *
 *  Local (rank 0). With the same header lines beyond `update` are cut off, and what comes before keeps its bytes.
 *  With another one the file is written anew: values go by the names of their columns, a column that is new is
 *  empty, and where the old file holds anything that this one cannot (a column that is no more, a line that fits
 *  neither header) it is kept beside as metrics-<n>.csv. A note says so.
 *
 *  header  in   the first line, with its end
 *  kept    out  whether the table is there; false: the caller begins a file
 *  Errors:  SMOE_ERR_IO; the old file is whole then.
 */
smoe_status smoe_metrics_adopt(const char *path, const char *header, int64_t update, bool *kept);

#endif
