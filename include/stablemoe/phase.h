/** Where the time of an update goes.
 *
 *  One clock per rank is always on exactly one phase: smoe_phase moves it to another and
 *  books the time since the last move. So the phases add up to the update, and a
 *  move costs one look at the clock (some tens of ns).
 */
#ifndef STABLEMOE_PHASE_H
#define STABLEMOE_PHASE_H

#include "stablemoe/status.h"

typedef enum smoe_phase_kind {
  SMOE_PHASE_OTHER, /**< anything without a name of its own */
  SMOE_PHASE_DATA,  /**< reading the batch */
  SMOE_PHASE_EMBEDDING,
  SMOE_PHASE_NORM,   /**< norms, residuals and other passes over memory of the blocks */
  SMOE_PHASE_LINEAR, /**< the blocks' matrix products */
  SMOE_PHASE_ATTENTION,
  SMOE_PHASE_HEAD,     /**< final norm, logits, loss, and their gradients */
  SMOE_PHASE_ROUTE,    /**< routers: choice, losses, gradients */
  SMOE_PHASE_PLAN,     /**< exchange of counts; waits for the slowest rank's backbone */
  SMOE_PHASE_PACK,     /**< copying rows into and out of the exchange's order */
  SMOE_PHASE_TRANSFER, /**< waiting for rows, and so for the slowest rank's experts */
  SMOE_PHASE_EXPERTS,
  SMOE_PHASE_COMBINE,   /**< gates times results, and their gradients */
  SMOE_PHASE_REDUCTION, /**< gradients over lanes and ranks, losses, norm */
  SMOE_PHASE_OPTIMIZER, /**< Adam, and sharing the new parameters */
  SMOE_PHASES
} smoe_phase_kind;

/** Move the clock to a phase; returns the phase it was on. Local. */
smoe_phase_kind smoe_phase(smoe_phase_kind next);

/** smoe_phase for a part of a sublayer. In experts and routers, which have phases of their own, the clock stays
 *  where it is: they compute with the same sublayers. Local.
 */
void smoe_phase_sublayer(smoe_phase_kind next);

/** Seconds booked so far, [SMOE_PHASES], up to now. Local. */
const double *smoe_phase_seconds(void);

/** Forget all booked time. Local. */
void smoe_phase_reset(void);

/** Short name: "attention". Local. */
const char *smoe_phase_name(smoe_phase_kind phase);

/** Also write every phase as an event of Chrome's trace format (Perfetto opens it too).
 *
 *  Local. Each rank writes a file of its own, <path>.<rank>, which smoe_phase_trace_end completes; its
 *  directory is made where it is missing.
 *  Errors:  SMOE_ERR_IO.
 */
smoe_status smoe_phase_trace_begin(const char *path, int rank);
smoe_status smoe_phase_trace_end(void);

#endif
