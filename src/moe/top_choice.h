/** What methods share that send a token to its k best experts by some scores: choice, gates, losses, gradients.
 *
 *      T_t: the k largest scores z_t;  s_t = softmax(z_t), or the sigmoid of each;  g_{t,e} = s_{t,e} for e in T_t,
 *      over their sum where normalised
 *
 *  A method makes the scores [N, E] and turns their gradient into those of its parameters; the rest is here: keys,
 *  balance loss over batch, lane or sequence, balancing by a bias, z loss, forced balance. doc/methods/topk.md has
 *  the equations. All functions are Local.
 */
#ifndef STABLEMOE_MOE_TOP_CHOICE_H
#define STABLEMOE_MOE_TOP_CHOICE_H

#include "softmax_scores.h"

/** Values of the keys; a method has them in its own struct of options. */
typedef struct smoe_top_options {
  int64_t k;
  bool normalise;
  int scores; /**< index into smoe_top_scores */
  double balance_weight;
  int balance_over; /**< smoe_balance_over */
  double bias_rate;
  double z_loss_weight;
  bool forced_balance;
} smoe_top_options;

enum { SMOE_TOP_MOST = 64 };
enum { SMOE_TOP_SOFTMAX, SMOE_TOP_SIGMOID };
extern const char *const smoe_top_scores[];

/** Of the 8 parameters that a router can remember, the one that is taken for the bias. */
enum { SMOE_TOP_BIAS = 7 };

#define SMOE_TOP_KEY(method, at, name, kind, ...)                                                            \
  { "router." method "." #name, SMOE_KEY_##kind, (at) + offsetof(smoe_top_options, name), __VA_ARGS__ }

/** The keys "router.<method>.*"; at: offset of the smoe_top_options in the method's options. */
#define SMOE_TOP_KEYS(method, at)                                                                            \
  SMOE_TOP_KEY(method, at, k, INT, "2", 1, SMOE_TOP_MOST, NULL, "experts",                                   \
               "Experts that each token visits; at most moe.experts."),                                      \
      SMOE_TOP_KEY(method, at, normalise, BOOL, "true", 0, 0, NULL, "",                                      \
                   "Make the gates of a token's experts add up to 1; with router." method                    \
                   ".k 1 the gate is 1 then, and only the "                                                  \
                   "balance loss trains the router."),                                                       \
      SMOE_TOP_KEY(method, at, scores, CHOICE, "softmax", 0, 0, smoe_top_scores, "",                         \
                   "What makes gates of scores: a softmax over all experts, or the sigmoid of each score "   \
                   "by itself."),                                                                            \
      SMOE_TOP_KEY(method, at, balance_weight, REAL, "0.01", 0, 1e6, NULL, "",                               \
                   "Weight of the balance loss, which is 1 at an even load; 0: none."),                      \
      SMOE_TOP_KEY(method, at, balance_over, CHOICE, "batch", 0, 0, smoe_balance_overs, "",                  \
                   "Tokens whose loads the balance loss evens out: those of the micro-batch on all ranks, "  \
                   "of a lane, or of each "                                                                  \
                   "sequence."),                                                                             \
      SMOE_TOP_KEY(method, at, bias_rate, REAL, "0", 0, 1, NULL, "",                                         \
                   "Balancing without a loss: a bias of each expert, which counts for the choice alone, "    \
                   "rises or falls by this "                                                                 \
                   "much after each update whose load was below or above the mean; 0: no bias; DeepSeek-V3 " \
                   "has 0.001."),                                                                            \
      SMOE_TOP_KEY(method, at, z_loss_weight, REAL, "0", 0, 1e6, NULL, "",                                   \
                   "Weight of the z loss, which keeps scores small: the squared logarithm of the sum of "    \
                   "their exponentials; "                                                                    \
                   "0: none; ST-MoE has 0.001."),                                                            \
      SMOE_TOP_KEY(method, at, forced_balance, BOOL, "false", 0, 0, NULL, "",                                \
                   "For benchmarks: send tokens to the experts in turn, whatever the scores are, so that "   \
                   "all have alike.")

/** One call of a router with such options, and its memory. */
typedef struct smoe_top {
  const smoe_router *router;
  const smoe_top_options *options;
  const smoe_route_call *call;
  smoe_real
      *tape; /**< [smoe_top_tape_reals] from choose to backward; the scores [N, E] come in at its start */
  smoe_real *scratch; /**< [smoe_top_scratch_reals] */
} smoe_top;

/** Reals of tape and scratch of a call of n tokens. */
size_t smoe_top_tape_reals(const smoe_router *router, const smoe_top_options *options, size_t n);
size_t smoe_top_scratch_reals(const smoe_router *router, const smoe_top_options *options, size_t n);

/** Check the keys of a method. Errors: SMOE_ERR_CONFIG where k is more than the experts. */
smoe_status smoe_top_check(const smoe_config *config, const smoe_top_options *options, const char *method);

/** What decides in evaluation, for a method whose scores come from the token alone. */
smoe_router_scope smoe_top_scope(const smoe_top_options *options);

/** Declare the bias, where there is one, and the z loss. */
void smoe_top_declare(smoe_router *router, const smoe_top_options *options, smoe_params *params);

/** The router's choose: experts, from the scores [N, E] at the start of the tape, which are overwritten. */
void smoe_top_choose(const smoe_top *top);

/** The router's gate. */
void smoe_top_gate(const smoe_top *top);

/** The gates [K] of one token: s of its choices, over their sum if normalised; 0 for unused slots. */
void smoe_top_gates(smoe_real *gate, const smoe_real *s, const int32_t *expert, size_t k, bool normalise);

/** dz [E] += the gradient of the scores through one token's gates that add up to 1.
 *
 *  s, gate, expert  in  [E], [K], [K] of the token; dgate [K] its gates' gradient
 *  sigmoid          in  gates are of sigmoids; false: of a softmax
 */
void smoe_top_gates_backward(smoe_real *dz, const smoe_real *s, const smoe_real *gate, const smoe_real *dgate,
                             const int32_t *expert, size_t k, bool sigmoid);

/** The router's losses. */
void smoe_top_losses(const smoe_top *top, const smoe_route_loads *loads, smoe_route_sums *sums);

/** The gradient of the scores [N, E], from those of the gates and the losses. Returns it: it is in scratch. */
smoe_real *smoe_top_backward(const smoe_top *top, const smoe_route_loads *loads, const smoe_real *dgate);

/** The router's after_update: b_e += rate sign(mean load - load of e). */
void smoe_top_after_update(smoe_router *router, const smoe_top_options *options, smoe_params *params,
                           const smoe_route_loads *loads);

#endif
