/* Between the files of the lanes' sums. */
#ifndef STABLEMOE_LANES_PARTS_H
#define STABLEMOE_LANES_PARTS_H

#include "stablemoe/lanes.h"

/* A datatype of SMOE_UNIT reals: counts in units cannot overflow an int. Local. */
MPI_Datatype smoe_unit_create(void);

#endif
