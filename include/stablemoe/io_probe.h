/** Trying the file system as checkpoints use it: for `stablemoe doctor`. */
#ifndef STABLEMOE_IO_PROBE_H
#define STABLEMOE_IO_PROBE_H

#include "stablemoe/group.h"

/** Version of the HDF5 library in use, and whether it is parallel: "1.10.8, parallel". Local; before MPI too. */
const char *smoe_hdf5_name(void);

/** Write a small file by all ranks as a checkpoint is written, read it back, and delete it.
 *
 *  Collective. The directory must be there; nothing is left in it.
 *  bytes    in   of each rank, a multiple of 8
 *  seconds  out  all of it, of the slowest rank
 *
 *  Errors:  agreed; SMOE_ERR_IO where it cannot be written, not be read by every rank, or reads
 *           back otherwise.
 */
smoe_status smoe_io_probe(const smoe_group *group, const char *directory, size_t bytes, double *seconds);

#endif
