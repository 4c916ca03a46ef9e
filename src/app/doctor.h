/** The findings of `stablemoe doctor`, and what the ranks tell of themselves. */
#ifndef STABLEMOE_APP_DOCTOR_H
#define STABLEMOE_APP_DOCTOR_H

#include <sched.h>
#include <stdbool.h>

#include "stablemoe/group.h"
#include "stablemoe/memory.h"

/** What a rank tells of itself. */
typedef struct smoe_rank_facts {
  char host[64], core_type[32];
  cpu_set_t cpus; /**< where it may run */
  int threads;
  pid_t pid;
  smoe_memory memory;
  double free_shared; /**< of its machine, bytes; negative: not known */
  double gemm, peak;  /**< of its core, FLOP/s (products.h) */
  bool hidden;        /**< its CPU has AVX-512, and does not show it */
} smoe_rank_facts;

typedef struct smoe_doctor {
  const smoe_group *group;
  smoe_rank_facts *rank; /**< [n_ranks] on rank 0, NULL elsewhere */
  int n_warnings, n_wrong;
  smoe_status worst;
} smoe_doctor;

/** A finding: a line on rank 0, and counted. Local. */
void smoe_doctor_ok(smoe_doctor *doctor, const char *format, ...) __attribute__((format(printf, 2, 3)));
void smoe_doctor_warning(smoe_doctor *doctor, const char *format, ...) __attribute__((format(printf, 2, 3)));
void smoe_doctor_error(smoe_doctor *doctor, smoe_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/** This rank's facts. Local. */
smoe_rank_facts smoe_doctor_facts(void);

/** Look at launch, placement, binding, cores, memory and BLAS of all ranks. Local, on rank 0.
 *  launched  in  smoe_app_launched
 */
void smoe_doctor_ranks(smoe_doctor *doctor, long launched);

#endif
