/** What MPI this is, and whether its ranks reach each other: for reports and `stablemoe doctor`. */
#ifndef STABLEMOE_MPI_FACTS_H
#define STABLEMOE_MPI_FACTS_H

#include <stddef.h>

#include "stablemoe/group.h"

/** Name and version of the MPI library in a line: "Open MPI v4.1.4". Local; MPI need not have begun. */
const char *smoe_mpi_name(void);

/** Version of Open MPI as one number: 40104 for 4.1.4; 0 where the MPI is another one. Local; as above. */
int smoe_mpi_open_mpi(void);

/** Set what MPI and HDF5 read from the environment when they start, where nothing is set yet. Local; before MPI_Init.
 *
 *  So a program that is launched by hand has what job scripts would export.
 */
void smoe_mpi_prepare_environment(void);

/** The part of MPI that opens files. */
typedef enum smoe_io_layer { SMOE_LAYER_UNKNOWN, SMOE_LAYER_OMPIO, SMOE_LAYER_ROMIO } smoe_io_layer;

/** Which one opens files of a directory, as the settings of MPI and the file system decide. Local. */
smoe_io_layer smoe_mpi_io_layer(const char *directory);

/** Directory in which MPI makes memory that ranks of a machine share: "/dev/shm", unless the environment has another one
 *  for Open MPI (mpirun --mca puts it there). Local; MPI need not have begun.
 */
const char *smoe_mpi_memory_directory(void);

/** Refuse a directory with a longer path than MPI can open files in.
 *
 *  Local; MPI has begun.
 *  Errors:  SMOE_ERR_MPI where Open MPI would use its component sharedfp/lockedfile, which has 256 bytes for the name
 *           of a file. smoe_mpi_prepare_environment deselects it, unless somebody has selected it.
 */
smoe_status smoe_mpi_check_path(const char *directory);

/** Gather `bytes` bytes of each rank on rank 0: all [n_ranks, bytes], used there alone. Collective. */
void smoe_group_collect(const smoe_group *group, void *all, const void *mine, size_t bytes);

/** Send every rank a piece that only it should get, and look at what came.
 *
 *  Collective.
 *  bytes    in   of each piece, a multiple of 8
 *  seconds  out  of the exchange, of the slowest rank
 *
 *  Errors:  SMOE_ERR_MPI, agreed, where a piece is not what was sent.
 */
smoe_status smoe_group_try_exchange(const smoe_group *group, size_t bytes, double *seconds);

#endif
