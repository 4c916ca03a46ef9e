/** Layers: the model is a list of them, and each is a table of functions, as routing methods are.
 *
 *  Most layers are residual sublayers, out = in + F(norm(in)). A layer belongs to one stream of
 *  rows: the decoder's (or only) one, or the encoder's. It works lane by lane on the rows of a
 *  call, or, where rows are exchanged over ranks, on all lanes of the rank at once.
 *
 *  Shapes belong to the batch: memory is planned for the largest one, and a pass runs with the
 *  sequences and lengths that its batch has. They follow from configuration, seed and update,
 *  never from the number of ranks.
 */
#ifndef STABLEMOE_LAYER_H
#define STABLEMOE_LAYER_H

#include "stablemoe/config.h"
#include "stablemoe/params.h"
#include "stablemoe/sublayer.h"

/** Streams of rows. */
enum { SMOE_MAIN, SMOE_ENCODER, SMOE_STREAMS };

/** Rows of one stream in a micro-batch on this rank: lanes, one after another, all of one shape. */
typedef struct smoe_token_shape {
  int n_lanes;           /**< of this rank */
  size_t lane_sequences; /**< S */
  size_t context;        /**< T rows of a sequence, padding included */
  size_t lane_tokens;    /**< S T */
  size_t n_tokens;       /**< N = n_lanes S T */
  int64_t first_token;   /**< global index of this rank's first token in the micro-batch */
  int64_t n_global;      /**< tokens of all ranks in the micro-batch */
  int64_t n_replica;     /**< tokens of this replica's ranks; 0: n_global */
} smoe_token_shape;

/** One micro-batch on this rank: what a task reads and a pass runs on. */
typedef struct smoe_batch {
  smoe_token_shape shape[SMOE_STREAMS]; /**< all zero where the model has no such stream */
  const int32_t *token[SMOE_STREAMS];   /**< [N] ids; -1: padding */
  const int32_t *length[SMOE_STREAMS];  /**< [sequences of this rank] real rows of each; NULL: all of them */
  const int32_t *target;        /**< [N] of the main stream, -1: none; NULL: a pass without head. Copies have
                                             the same */
  int64_t before[SMOE_STREAMS]; /**< tokens of the update's micro-batches before this one, all ranks */
  const smoe_real *patch;       /**< [N, patch] images: the rows themselves; NULL: there are tokens alone */
  int copies;                   /**< of each sequence in its lane, one after another; 0 or 1: no more */
} smoe_batch;

/** What a forward pass is besides its rows. */
typedef struct smoe_pass {
  uint64_t seed;
  int64_t update;          /**< zero-based number of the update in progress */
  int64_t micro_batch;     /**< of the update, from 0; 0 in evaluation */
  int stage;               /**< 1: routing is learned, 2: it is frozen */
  bool training;           /**< false: evaluation (no noise, no dropout, distilled router, ...) */
  int64_t n_targets;       /**< real targets of the update over all ranks: the losses' denominator */
  const int32_t *recorded; /**< [M, N, K] assignments of a routing log for the update's batch; NULL: none */
  const smoe_batch *batch; /**< set by smoe_model_forward */
  bool skip_nothing;       /**< gates of sublayers (skip.h) are passed over: all rows run */
} smoe_pass;

typedef struct smoe_layer smoe_layer;
typedef struct smoe_layer_ops smoe_layer_ops;

/** The last map of a feed-forward layer or expert. */
typedef enum smoe_output {
  SMOE_OUTPUT_LEARNED,
  SMOE_OUTPUT_NORMAL, /**< fixed at N(0, 1) */
  SMOE_OUTPUT_CLASS /**< fixed: of expert e 1 for output e, 0 for others; where there is one output, 1 or -1 */
} smoe_output;

enum { SMOE_LAYER_NAME = 48 };

/** Sublayers that a gate may skip. */
typedef enum smoe_skip_kind {
  SMOE_SKIP_NOTHING,
  SMOE_SKIP_ATTENTION,
  SMOE_SKIP_FFN,
  SMOE_SKIP_BLOCK
} smoe_skip_kind;

/** What a layer is: families fill these. */
typedef struct smoe_layer_spec {
  const smoe_layer_ops *ops;
  char name[SMOE_LAYER_NAME]; /**< "block0/attention": prefix of its parameters' names */
  int stream;                 /**< SMOE_MAIN or SMOE_ENCODER */
  int block;                  /**< consecutive layers of one block run lane by lane together; -1: alone */
  size_t width;               /**< C */
  smoe_norm_kind norm;        /**< before the layer; of the head and a final norm: of the stream */
  smoe_activation activation; /**< of feed-forward layers and experts */
  size_t inner;               /**< F of feed-forward layers and experts */
  size_t heads, kv_heads;     /**< attention: query heads; key and value heads, which divide them */
  bool causal;                /**< attention: a row sees itself and those before it */
  bool cross;                 /**< attention: keys and values from the source stream */
  bool bias;                  /**< linear maps have biases */
  double rope;                /**< attention: base of rotary positions; 0: none */
  bool positions;             /**< embedding: learned positions */
  double scale; /**< embedding: factor of the token's row; classifying head: of an image's sum */
  size_t vocabulary, context; /**< embedding, head: V; T of the learned positions */
  bool tied;                  /**< head: its matrix is the embedding's table */
  size_t patch;               /**< images: numbers of a patch */
  size_t out; /**< feed-forward layers and experts: width of their output, to which the input is
                                   not added; 0: width, and it is added */
  bool data;  /**< the rows are data, which have no gradient; with out alone */
  double
      deviation; /**< feed-forward layers and experts: the first map starts at N(0, deviation^2); 0: as usual */
  smoe_output output;         /**< feed-forward layers and experts: the last map */
  bool bare;                  /**< classifying head: the pooled rows are the logits */
  double dropout;             /**< share of F(norm(in)) (embedding: of its rows) set to zero in training */
  int moe;                    /**< number of an MoE layer, from 0; -1: not one */
  char from[SMOE_LAYER_NAME]; /**< MoE: the feed-forward layer of a dense model that it replaces; "": none */
  smoe_skip_kind skip; /**< what a gate lets rows skip (skip.h); SMOE_SKIP_NOTHING: an ordinary layer */
  int n_moe;           /**< MoE layers of the model */
  int experts, sublayers,
      shared; /**< MoE: E; feed-forward sublayers per expert; experts that are always on */
  smoe_norm_kind
      expert_norm; /**< MoE: of each expert's sublayers; their last maps start at zero then, so that
                                       an expert starts as the identity */
} smoe_layer_spec;

/** Rows of logits for an objective: `rows` targets, and for each of `copies` their logits. */
typedef struct smoe_objective_call {
  smoe_real *logits;     /**< [copies, rows, V] in; where gradient: overwritten with dL/dlogits */
  smoe_real *loss;       /**< [copies, rows] out: nats per target; 0 where there is none */
  double *sums;          /**< [n_sums] of the lane; += */
  int32_t *predicted;    /**< [rows] out: likeliest class, where the objective tells it; NULL: not wanted */
  const int32_t *target; /**< [rows]; -1: none */
  size_t rows, vocabulary;
  int copies;
  smoe_real scale; /**< of the gradient: 1 / number of targets */
  bool gradient;
} smoe_objective_call;

/** What is learned: turns logits into losses and their gradients. */
typedef struct smoe_objective {
  void (*rows)(const struct smoe_objective *self, const smoe_objective_call *call);
  double label_smoothing;
  int n_sums; /**< sums of its own, besides loss and targets */
  const char *const
      *sum_names; /**< [n_sums]; one that is named as a loss term is part of what is minimised */
  bool counts;    /**< its first sum counts the targets that are predicted */
  const struct smoe_objective *each; /**< consistent: of each copy */
  double consistency;                /**< consistent: weight of the symmetric divergence */
} smoe_objective;

/** Cross entropy of each row against its target. */
extern const smoe_objective smoe_objective_cross_entropy;

/** Cross entropy with label smoothing in training, plain in evaluation; the plain one is its sum "nll". */
smoe_objective smoe_objective_smoothed(double label_smoothing);

/** An objective of each of two copies, added, and the divergence between what both predict:
 *
 *      sum over copies of each + weight (KL(p1 || p2) + KL(p2 || p1)) / 2
 *
 *  Its first sum is "consistency", the weighted divergence; then come those of `each`, means over the copies. With
 *  one copy, as in evaluation, it is `each`. The object `each` must outlive it.
 *  Source: THOR (Zuo et al. 2021).
 */
smoe_objective smoe_objective_consistent(const smoe_objective *each, double weight);

/** Classes: cross entropy, or with one logit the logistic loss of class 1 against 0; targets that are predicted are its
 *  sum "correct".
 */
extern const smoe_objective smoe_objective_classes;

/** Sums over one lane's targets since smoe_model_begin_update; then come the objective's own. All are doubles:
 *  smoe_lanes_sum adds them up as an array.
 */
typedef struct smoe_lane_sums {
  double loss;      /**< the objective's, nats; the mean of the copies */
  double n_targets; /**< real targets */
} smoe_lane_sums;

/** One lane's rows in a call of a layer; what a function does not use is not set. */
typedef struct smoe_layer_call {
  const smoe_pass *pass;
  int lane;                        /**< counted on this rank: its gradient slab */
  size_t n, n_sequences, context;  /**< N = S T rows of the layer's stream */
  const int32_t *token, *length;   /**< [N]; [S] or NULL */
  const smoe_real *patch;          /**< [N, patch] images: the rows */
  const smoe_real *x;              /**< [N, C] input */
  smoe_real *y;                    /**< [N, C] output */
  smoe_real *dx;                   /**< [N, C] backward: dL/dy on entry, dL/dx on return */
  size_t side_context;             /**< cross attention: T of the source stream */
  const int32_t *side_length;      /**< [S] or NULL */
  const smoe_real *side;           /**< [S side_context, C] rows of the source stream */
  smoe_real *dside;                /**< += */
  uint64_t first_index;            /**< global index of row 0 in the update: counter of random numbers */
  const int32_t *target;           /**< head: [N] */
  const smoe_objective *objective; /**< head */
  smoe_real *token_loss;           /**< head: [N] out; NULL: not kept */
  int32_t *predicted; /**< classifying head: [N] out, at the first row of an image; NULL: not kept */
  double *sums;       /**< head: the lane's sums, smoe_lane_sums first; += */
} smoe_layer_call;

/** New rows of decoding in each lane: n rows of each of n_sequences sequences, at places first .. first + n - 1.
 *  Layers that work lane by lane get one lane's pointers; MoE layers get those of the rank's first lane, and the
 *  others follow.
 */
typedef struct smoe_extend_call {
  const smoe_pass
      *pass; /**< its batch has the shape [n_sequences, n] in each of the lanes that this rank has */
  size_t n_sequences, first, n;
  size_t length_max;    /**< T of the layer's state */
  const int32_t *token; /**< [n_sequences, length_max] all tokens so far, -1 beyond */
  const smoe_real *x;   /**< [n_sequences n, C] */
  smoe_real *y;
  smoe_real *state;  /**< of the layer and lane; as state_reals says */
  size_t lane_state; /**< reals from one lane's state to the next */
  size_t side_context;
  const int32_t *side_length; /**< [n_sequences]; NULL: side_context */
  const smoe_real *side;      /**< [n_sequences side_context, C] */
} smoe_extend_call;

/** Memory of a layer. */
typedef struct smoe_layer_memory {
  smoe_arena *fixed, *tape, *scratch;
  const smoe_token_shape *shape; /**< [SMOE_STREAMS] the largest batch on this rank */
  int tape_lanes;                /**< lanes whose tape is kept; 1: one lane's, used by all in turn */
  bool training;
} smoe_layer_memory;

/** One matrix product of a layer: op(a) [m, k] times op(b) [k, n], `count` times in a micro-batch of this rank. */
typedef struct smoe_product {
  bool transpose_a, transpose_b;
  size_t m, n, k;
  double count;
} smoe_product;

/** The arithmetic of a micro-batch on all ranks, forward and backward. */
typedef struct smoe_work {
  size_t n;
  smoe_product *product; /**< [n] in memory of smoe_alloc */
  double other;          /**< FLOP of products that are not GEMM calls (attention) */
  bool everything;       /**< count as if all parameters learned */
  bool forward_only;     /**< of the layer at work: no gradient reaches it */
} smoe_work;

/** The functions of a layer. All are Local but those of all lanes, which are collective. */
struct smoe_layer_ops {
  const char *kind; /**< "attention" */
  size_t bytes;     /**< of layer->state */

  /** Declare the parameters; the same calls on all ranks. NULL: it has none. */
  void (*declare)(smoe_layer *layer);

  /** Take memory; runs twice, to measure and to take. */
  void (*layout)(smoe_layer *layer, const smoe_layer_memory *memory);

  /** y from x, and the tape. */
  void (*forward)(smoe_layer *layer, const smoe_layer_call *call);

  /** The tape alone, the same bits as forward left; where activations are computed again. */
  void (*recompute)(smoe_layer *layer, const smoe_layer_call *call);

  /** dx in place; the lane's gradients +=, dside +=. */
  void (*backward)(smoe_layer *layer, const smoe_layer_call *call);

  /** MoE: instead of the three above, all lanes of the rank at once. plan comes before any layer
   *  has run. sums: lane l's at sums + l stride. Collective. */
  void (*plan_all)(smoe_layer *layer, const smoe_pass *pass);
  void (*forward_all)(smoe_layer *layer, const smoe_pass *pass, smoe_real *y, const smoe_real *x,
                      double *sums, size_t stride);
  void (*backward_all)(smoe_layer *layer, const smoe_pass *pass, smoe_real *dx, const smoe_real *x);

  /** Add up over all ranks what the backward pass needs from the forward pass; before it. Collective. NULL: nothing. */
  void (*settle)(smoe_layer *layer, const smoe_pass *pass);

  /** Decoding: reals of state for sequences of length_max rows beside side_max rows of the source stream; y of the new rows. reorder permutes the
   *  sequences' states: new sequence i continues old sequence from[i], of which `length` rows are used.
   *  NULL: no state; forward serves. */
  size_t (*state_reals)(const smoe_layer *layer, size_t n_sequences, size_t length_max, size_t side_max);
  void (*extend)(smoe_layer *layer, const smoe_extend_call *call);
  void (*reorder)(const smoe_layer *layer, smoe_real *state, const int32_t *from, size_t n_sequences,
                  size_t length, size_t length_max, size_t side_max);

  /** Add the layer's products for a micro-batch; the shape's lanes are those of all ranks. */
  void (*work)(const smoe_layer *layer, const smoe_token_shape *shape, smoe_work *work);

  /** Bytes of the plan's worst case that balanced routing leaves untouched. with_scratch: once for all
   *  layers that share scratch. NULL: 0. */
  double (*untouched)(const smoe_layer *layer, bool training, bool with_scratch);

  /** Free what is in no arena. NULL: nothing. */
  void (*release)(smoe_layer *layer);
};

/** A layer of a model. */
struct smoe_layer {
  smoe_layer_spec spec;
  const smoe_config *config;
  smoe_params *params;
  smoe_precision precision;   /**< of products' operands: train.precision */
  int number;                 /**< in the model's list, which tells its random numbers apart */
  int first_param, end_param; /**< its parameters in the table: first_param .. end_param - 1 */
  void *state;                /**< the layer's own struct, ops->bytes, zeroed before declare */
};

extern const smoe_layer_ops smoe_layer_embedding; /**< y = scale table[token] + position */
extern const smoe_layer_ops smoe_layer_attention; /**< y = x + Wo attention(W norm(x) + b) + bo */
extern const smoe_layer_ops smoe_layer_ffn;       /**< y = x + W2 act(W1 norm(x) + b1) + b2 */
extern const smoe_layer_ops smoe_layer_norm;      /**< y = norm(x) */
extern const smoe_layer_ops smoe_layer_head;      /**< logits = W norm(x), loss and its gradient at once */
extern const smoe_layer_ops smoe_layer_pixels;    /**< y = patch */
extern const smoe_layer_ops smoe_layer_patches;   /**< y = W patch + b + position */
extern const smoe_layer_ops
    smoe_layer_classify; /**< logits = W norm(pooled rows) + b of each image, or those themselves */

/** Width of a layer's output. Local. */
static inline size_t smoe_layer_out(const smoe_layer_spec *spec) {
  return spec->out ? spec->out : spec->width;
}

/** Make a layer from its spec: state zeroed, nothing declared. Local. */
void smoe_layer_create(smoe_layer *layer, const smoe_layer_spec *spec, const smoe_config *config,
                       smoe_params *params);

/** Free it; accepts a zeroed one. Local. */
void smoe_layer_destroy(smoe_layer *layer);

/** Declare a matrix that products read, "<layer's name>/<name>", replicated, with decay. Local. Returns its index. */
int smoe_layer_declare_weight(smoe_layer *layer, const char *name, const int64_t *shape, smoe_init init);

/** What products read of a parameter; no operand where index is -1. Local. */
smoe_operand smoe_layer_weight(const smoe_layer *layer, int index);

/** Values of a parameter, and its gradient in the lane's slab; NULL where index is -1 (no such parameter). Local. */
const smoe_real *smoe_layer_value(const smoe_layer *layer, int index);
smoe_real *smoe_layer_grad(const smoe_layer *layer, int index, int lane);

/** Initial values of a last map: those of its kind, or `learned` where it learns. Local. */
smoe_init smoe_layer_output_init(smoe_output output, smoe_init learned);

/** Declare "<layer's name>/<name>", replicated. Local. Returns its index. */
int smoe_layer_declare(smoe_layer *layer, const char *name, const int64_t *shape, smoe_init init, bool decay);

/** Dropout of the layer on rows [N, C] of a call, in place; nothing in evaluation. Local. */
void smoe_layer_dropout(const smoe_layer *layer, const smoe_layer_call *call, smoe_real *x);

/** Gradient behind the dropout, from call->dx: in dy [N, C], or call->dx itself where nothing is dropped. Local. */
const smoe_real *smoe_layer_dropout_backward(const smoe_layer *layer, const smoe_layer_call *call,
                                             smoe_real *dy);

/** Sequence i of a state of n, each of stride reals of which `used` count, becomes what from[i] was. Local. */
void smoe_reorder_rows(smoe_real *state, const int32_t *from, size_t n, size_t used, size_t stride);

/** Add the products of a linear map C -> O on n rows: forward, input's gradient where gradients reach the layer, and
 *  weight's gradient where it learns (smoe_layer_learns). Local. */
void smoe_work_linear(smoe_work *work, size_t n, size_t c, size_t o, double count, bool learns);

/** Whether a parameter of the table is one that may learn; the table must be laid out. Local. */
bool smoe_layer_learns(const smoe_layer *layer, int index);

/** Add causal or full attention, forward and backward: S sequences, T rows against Tk, H heads of D. Local. */
void smoe_work_attention(smoe_work *work, double s, double t, double tk, double h, double d, bool causal);

/** Logits [n, V] of rows x [n, C] of the head's input; n is at most a lane's rows. decoding: as smoe_linear_rows
 *  makes them. Local. */
void smoe_layer_head_logits(smoe_layer *layer, smoe_real *logits, const smoe_real *x, size_t n,
                            bool decoding);

/** An attention layer in evaluation on some rows: y = x + F(x) where active [N], y = x elsewhere. Queries and output
 *  of other rows are not computed, keys and values only up to the last active row of each sequence. Local. */
void smoe_layer_attention_some(smoe_layer *layer, const smoe_layer_call *call, const bool *active);

/** The same in decoding: keys and values of all new rows, since later ones may need them. active [n_sequences n]. Local. */
void smoe_layer_attention_extend_some(smoe_layer *layer, const smoe_extend_call *call, const bool *active);

/** Rows of a slice of the head; may be set to fewer. Local. */
size_t *smoe_layer_head_rows(smoe_layer *layer);

/** A feed-forward layer without its residual: y += F(x), and its backward: dx += through F, from dy. Local. */
void smoe_layer_ffn_add(smoe_layer *layer, const smoe_layer_call *call, smoe_real *y);
void smoe_layer_ffn_add_backward(smoe_layer *layer, const smoe_layer_call *call, const smoe_real *dy);

/** The tape of a feed-forward layer: for tests of its gradient, which has kinks. Local. */
const smoe_ffn_tape *smoe_layer_ffn_tape(const smoe_layer *layer);

#endif
