/** Gradients of functions that are smooth in pieces: between flips of a relu or of a routing decision.
 *
 *  The function says in which piece it was evaluated, as a hash of the decisions that show. A
 *  difference quotient counts only where all its points lie in one piece; else the step is
 *  made smaller, and at last the entry is skipped. Too many skips fail the test. A decision
 *  that does not show (inside a router) spoils a quotient, but not those of smaller steps: an
 *  entry passes with the first step that agrees, which a wrong gradient never finds.
 */
#ifndef STABLEMOE_TEST_PIECEWISE_H
#define STABLEMOE_TEST_PIECEWISE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/params.h"
#include "stablemoe/random.h"

typedef struct piecewise {
  const char *name; /**< of the case, for messages */
  double (*value)(void *context, uint64_t *piece);
  void *context;
  size_t entries;   /**< to check of each tensor, chosen at random; 0: all */
  const char *idle; /**< parameter whose gradient may be zero everywhere; NULL: none */
  int n_checked, n_skipped;
  double worst; /**< largest relative error */
} piecewise;

/** Relative error that passes. It is taken relative to this part of the tensor's largest entry, or to
 *  this size, where the entry itself is smaller: what is nearly zero drowns in the rounding of the value.
 */
static const double PIECEWISE_TOLERANCE = 1e-6, PIECEWISE_FLOOR = 1e-2, PIECEWISE_LEAST = 1e-5;

/** Add a decision to the hash (FNV-1a over words). */
static inline void piece_add(uint64_t *piece, uint64_t decision) {
  *piece = (*piece ^ decision) * UINT64_C(1099511628211);
}

/** Add which of n units are active after a relu. */
static inline void piece_add_active(uint64_t *piece, const smoe_real *h, size_t n) {
  for (size_t i = 0; i < n; i++) piece_add(piece, h[i] > 0 ? 1 : 2);
}

/** Add chosen experts. */
static inline void piece_add_choices(uint64_t *piece, const int32_t *expert, size_t n) {
  for (size_t i = 0; i < n; i++) piece_add(piece, (uint64_t)(uint32_t)expert[i]);
}

/** Four-point central difference by *x with step h (error h^4); false where a point lies in another piece. */
static inline bool piecewise_quotient(const piecewise *p, double *quotient, smoe_real *x, double h,
                                      uint64_t piece) {
  static const double offset[] = {-2, -1, 1, 2}, weight[] = {1, -8, 8, -1};
  const smoe_real kept = *x;
  double sum = 0;
  bool same = true;
  for (int j = 0; j < 4 && same; j++) {
    uint64_t there = 0;
    *x = kept + (smoe_real)(offset[j] * h);
    sum += weight[j] * p->value(p->context, &there);
    same = there == piece;
  }
  *x = kept;
  *quotient = sum / (12 * h);
  return same;
}

/** Error of one entry against the quotients by *x: INFINITY where none can be had. */
static inline double piecewise_error(const piecewise *p, double *quotient, smoe_real *x, double gradient,
                                     double floor_, uint64_t piece) {
  static const double steps[] = {1e-3, 1e-4, 2e-5};
  double least = INFINITY;
  for (size_t s = 0; s < sizeof steps / sizeof *steps && !(least <= PIECEWISE_TOLERANCE); s++) {
    double at_step;
    if (!piecewise_quotient(p, &at_step, x, steps[s], piece)) continue;
    const double error = test_relative(gradient, at_step, floor_);
    if (error < least || isinf(least) || isnan(error)) least = error, *quotient = at_step;
    if (isnan(error)) break;
  }
  return least;
}

/** Check the gradient [n] of the value by x [n]; returns the largest entry of the gradient. */
static inline double piecewise_check(piecewise *p, const char *what, smoe_real *x, const smoe_real *gradient,
                                     size_t n) {
  const size_t entries = p->entries > 0 && p->entries < n ? p->entries : n;
  double largest = 0, worst = 0, worst_quotient = 0;
  size_t worst_at = 0;
  uint64_t piece = 0;
  for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)gradient[i]));
  p->value(p->context, &piece);
  for (size_t j = 0; j < entries; j++) {
    const size_t i = smoe_random_permute(1, SMOE_RANDOM_TEST, smoe_hash_text(what), n, j);
    double quotient = 0;
    const double error = piecewise_error(p, &quotient, x + i, (double)gradient[i],
                                         fmax(PIECEWISE_FLOOR * largest, PIECEWISE_LEAST), piece);
    p->n_checked += !isinf(error);
    p->n_skipped += isinf(error);
    if (!isinf(error) && !(error <= worst)) worst = error, worst_at = i, worst_quotient = quotient;
  }
  CHECK(worst <= PIECEWISE_TOLERANCE,
        "%s: %s [%zu]: %.12g, but the difference quotient is %.12g: relative error %.2g", p->name, what,
        worst_at, (double)gradient[worst_at], worst_quotient, worst);
  if (!(worst <= p->worst)) p->worst = worst;
  return largest;
}

/** Gradient of a parameter: the sum over lanes, or those of all local experts. In memory of smoe_alloc. */
static inline smoe_real *piecewise_gradient(const smoe_params *params, int index) {
  const smoe_param *param = &params->param[index];
  const bool expert = param->sharding == SMOE_EXPERT;
  const int parts = expert ? smoe_params_slab(params, index)->n_local : params->lanes.count;
  smoe_real *gradient = smoe_alloc((size_t)(expert ? parts : 1) * param->count * sizeof *gradient);
  for (int j = 0; j < parts; j++) {
    const smoe_real *part =
        expert ? smoe_params_expert_grad(params, index, j) : smoe_params_lane_grad(params, index, j);
    for (size_t k = 0; k < param->count && part; k++)
      gradient[(expert ? (size_t)j : 0) * param->count + k] += part[k];
  }
  return gradient;
}

/** Check one parameter; returns its largest gradient. */
static inline double piecewise_check_param(piecewise *p, const smoe_params *params, int index,
                                           const smoe_real *gradient) {
  const smoe_param *param = &params->param[index];
  if (param->sharding == SMOE_REPLICATED)
    return piecewise_check(p, param->name, smoe_params_shared(params, index), gradient, param->count);
  double largest = 0;
  for (int j = 0; j < smoe_params_slab(params, index)->n_local; j++) {
    char *name = smoe_sprintf("%s of expert %d", param->name, j);
    largest = fmax(largest, piecewise_check(p, name, smoe_params_expert(params, index, j),
                                            gradient + (size_t)j * param->count, param->count));
    smoe_free(name);
  }
  return largest;
}

/** Check the gradients of all parameters. A frozen one must have none; any other must have some,
 *  experts' parameters in one expert at least.
 */
static inline void piecewise_check_params(piecewise *p, const smoe_params *params) {
  /* All of them first: evaluating the value may add to them. */
  smoe_real **gradient = smoe_alloc((size_t)params->n_params * sizeof *gradient);
  for (int i = 0; i < params->n_params; i++) gradient[i] = piecewise_gradient(params, i);
  for (int i = 0; i < params->n_params; i++) {
    const smoe_param *param = &params->param[i];
    const size_t copies = (size_t)smoe_params_slab(params, i)->n_local;
    double frozen = 0;
    for (size_t k = 0; k < copies * param->count; k++) frozen = fmax(frozen, fabs((double)gradient[i][k]));
    if (param->frozen)
      CHECK(frozen == 0, "%s: %s is frozen and has a gradient of %g", p->name, param->name, frozen);
    else
      CHECK(piecewise_check_param(p, params, i, gradient[i]) > 0 ||
                (p->idle && strcmp(p->idle, param->name) == 0),
            "%s: the gradient of %s is zero everywhere", p->name, param->name);
    smoe_free(gradient[i]);
  }
  smoe_free(gradient);
}

/** The end of a case: entries were checked, and few were skipped. */
static inline void piecewise_end(const piecewise *p) {
  printf("%s: %d entries, %d skipped, largest relative error %.2g\n", p->name, p->n_checked, p->n_skipped,
         p->worst);
  CHECK(p->n_checked > 0 && p->n_skipped * 50 <= p->n_checked, "%s: %d entries checked, but %d skipped",
        p->name, p->n_checked, p->n_skipped);
}

#endif
