/** Memory that the ranks of a node have in common: a window of MPI (MPI_Win_allocate_shared).
 *
 *  What one rank writes the others see after the next fence. Between two fences a number may be written by one rank,
 *  and read by no other, or be read by all.
 */
#ifndef STABLEMOE_WINDOW_H
#define STABLEMOE_WINDOW_H

#include "stablemoe/group.h"

typedef struct smoe_window {
  smoe_group here; /**< the ranks that share it; its comm has to live as long */
  char *base;      /**< [bytes] aligned to 64; NULL: there is no window */
  size_t bytes;
  MPI_Win win;
} smoe_window;

/** A part of a window. */
typedef struct smoe_window_part {
  size_t bytes; /**< a multiple of 64 */
  int rank;     /**< of the node, that touches it first; -1: all do, equal shares of it in their order */
} smoe_window_part;

/** See whether the nodes have room for such windows, without making them.
 *
 *  Collective over world.
 *
 *  world  in  all ranks; here: those of this rank's node
 *  bytes  in  of the window of this node
 *  Errors:  SMOE_ERR_MEMORY, agreed over world: the file system from which MPI takes shared memory is too small.
 */
smoe_status smoe_window_check_room(const smoe_group *world, const smoe_group *here, size_t bytes);

/** Make a window on every node, all zero.
 *
 *  Collective over world.
 *
 *  part  in  [n_parts] its parts, which follow one another; pages lie on the socket of the rank that touches them first
 *  Errors:   SMOE_ERR_MEMORY, agreed over world; nothing is left to release then.
 */
smoe_status smoe_window_create(smoe_window *window, const smoe_group *world, const smoe_group *here,
                               const smoe_window_part *part, int n_parts);

/** Wait for the ranks that share a window; then each sees what the others wrote. Collective over window->here. */
void smoe_window_fence(const smoe_window *window);

/** Give it back; fine for a zeroed one. Collective over window->here. */
void smoe_window_release(smoe_window *window);

/** Make a window of bytes, let every rank write its part, and look at what the others wrote.
 *
 *  Collective over world.
 *  Errors:  SMOE_ERR_MEMORY as smoe_window_create; SMOE_ERR_MPI where a rank sees something else; agreed over world.
 */
smoe_status smoe_window_try(const smoe_group *world, const smoe_group *here, size_t bytes);

#endif
