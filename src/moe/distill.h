/** The distilled router: learns from token ids alone which expert another router chooses.
 *
 *      r_t = Ehat h_t,   L = -weight sum_t log softmax(r_t)[a_t]     (StableMoE, equations 9 and 10)
 *
 *  h_t are features of the token and those before it in its sequence: the word's
 *  embedding, the mean of two, a causal convolution, or a small causal Transformer.
 *  All functions are Local and work on one lane's call.
 */
#ifndef STABLEMOE_MOE_DISTILL_H
#define STABLEMOE_MOE_DISTILL_H

#include "stablemoe/router.h"

typedef enum smoe_features {
  SMOE_FEATURES_WORD,
  SMOE_FEATURES_BIGRAM,
  SMOE_FEATURES_CNN,
  SMOE_FEATURES_TRANSFORMER
} smoe_features;

/** Values of the keys that SMOE_DISTILL_KEYS declares. */
typedef struct smoe_distill_options {
  double weight;
  int64_t width; /**< D */
  int features;  /**< smoe_features */
  int64_t layers, heads;
} smoe_distill_options;

extern const char *const smoe_distill_features[];

/** The keys of a method's distilled router: section is "router.<method>.", member the
 *  smoe_distill_options in the method's own struct.
 */
#define SMOE_DISTILL_KEYS(section, type, member)                                                             \
  {section "distill_weight",                                                                                 \
   SMOE_KEY_REAL,                                                                                            \
   offsetof(type, member.weight),                                                                            \
   "1",                                                                                                      \
   0,                                                                                                        \
   1e6,                                                                                                      \
   NULL,                                                                                                     \
   "",                                                                                                       \
   "Weight of the distillation loss in stage 1 (equation 10; 1 in the paper, 0.3 in its code)."},            \
      {section "width",                                                                                      \
       SMOE_KEY_INT,                                                                                         \
       offsetof(type, member.width),                                                                         \
       "50",                                                                                                 \
       1,                                                                                                    \
       65536,                                                                                                \
       NULL,                                                                                                 \
       "",                                                                                                   \
       "Width of the distilled router's word embedding (section 4.2)."},                                     \
      {section "features",                                                                                   \
       SMOE_KEY_CHOICE,                                                                                      \
       offsetof(type, member.features),                                                                      \
       "word",                                                                                               \
       0,                                                                                                    \
       0,                                                                                                    \
       smoe_distill_features,                                                                                \
       "",                                                                                                   \
       "What the distilled router sees of a token: its word embedding, the mean of its own and the one "     \
       "before, a causal convolution over five, or a causal Transformer over the sequence."},                \
      {section "layers",                                                                                     \
       SMOE_KEY_INT,                                                                                         \
       offsetof(type, member.layers),                                                                        \
       "1",                                                                                                  \
       1,                                                                                                    \
       3,                                                                                                    \
       NULL,                                                                                                 \
       "",                                                                                                   \
       "Layers of the distilled router's Transformer (features transformer)."},                              \
  {                                                                                                          \
    section "heads", SMOE_KEY_INT, offsetof(type, member.heads), "2", 1, 1024, NULL, "",                     \
        "Attention heads of the distilled router's Transformer; must divide its width."                      \
  }

/** Check the values; section as above. Errors: SMOE_ERR_CONFIG. */
smoe_status smoe_distill_check(const smoe_distill_options *options, const char *section);

/** Declare the parameters below moe<m>/router/distilled/. Uses router->index from SMOE_DISTILL_INDEX on. */
enum { SMOE_DISTILL_INDEX = 5 };
void smoe_distill_declare(smoe_router *router, smoe_params *params, const smoe_distill_options *options);

/** Reals of tape: [N, E] scores, which smoe_distill_loss turns into probabilities, then what the
 *  features' backward needs; and reals of scratch.
 */
size_t smoe_distill_tape(const smoe_router *router, const smoe_distill_options *options, size_t n);
size_t smoe_distill_scratch(const smoe_router *router, const smoe_distill_options *options, size_t n);

/** table [V]: the expert that a distilled router on words has for each token id, as stage 2 has it. Local.
 *
 *  word      in  [V, D]
 *  centroid  in  [E, D]
 */
void smoe_distill_words(smoe_real *table, const smoe_real *word, const smoe_real *centroid, size_t v,
                        size_t d, int n_experts);

/** What the features see. */
smoe_router_scope smoe_distill_scope(const smoe_distill_options *options);

/** tape [N, E] = r. */
void smoe_distill_scores(const smoe_router *router, const smoe_distill_options *options,
                         const smoe_route_call *call, smoe_real *tape, smoe_real *scratch);

/** The term "distill" += the loss against target [N] (-1: none; read by smoe_slot_expert); the tape's scores
 *  become probabilities. */
void smoe_distill_loss(const smoe_router *router, const smoe_distill_options *options,
                       const smoe_route_call *call, const int32_t *target, smoe_real *tape,
                       smoe_route_sums *sums);

/** Add the loss's gradients, divided by n_targets, to the lane's slab. After smoe_distill_loss. */
void smoe_distill_backward(const smoe_router *router, const smoe_distill_options *options,
                           const smoe_route_call *call, const int32_t *target, const smoe_real *tape,
                           smoe_real *scratch);

/** The distilled choice [N] of a call, -1 for padding: from the compiled table where there is one, else by
 *  way of smoe_distill_scores. The same choices.
 */
void smoe_distill_choose(const smoe_router *router, const smoe_distill_options *options,
                         const smoe_route_call *call, int32_t *expert, smoe_real *tape, smoe_real *scratch);

/** Integers of a router's compiled table: [V], the expert of each token id, where features are words; else 0. */
size_t smoe_distill_table(const smoe_router *router, const smoe_distill_options *options);

/** Freeze the distilled router's parameters; the first time, compile them into router->table where there is one. */
void smoe_distill_freeze(smoe_router *router, const smoe_distill_options *options, smoe_params *params);

#endif
