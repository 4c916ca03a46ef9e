/* Expert Choice routing (Zhou et al. 2022), section 3: experts choose tokens.
 *
 *   p_t = softmax(W x_t) over the experts; every expert takes the k = n c / E tokens of largest p_{t,e}
 *   among the n of a group, gate = that p_{t,e}; a token may have 0 to E experts. No balance loss.
 * A group is a lane, with `within_sequence` a sequence, or with `causal` the tokens at one position of a lane's
 * sequences. In a language model
 * a choice within whole sequences looks at later tokens; doc/methods/expert_choice.md says what follows.
 */
#include <string.h>

#include "softmax_scores.h"
#include "stablemoe/kernel.h"
#include "stablemoe/log.h"

typedef struct expert_choice_options {
  double capacity;
  int64_t max_experts;
  bool causal;
  bool within;
  int evaluation; /* index into evaluations */
} expert_choice_options;

enum { BY_TOKENS, BY_EXPERTS };
static const char *const evaluations[] = {"tokens", "experts", NULL};

static const smoe_key keys[] = {
    {"router.expert_choice.capacity", SMOE_KEY_REAL, offsetof(expert_choice_options, capacity), "2", 0.001,
     65536, NULL, "experts", "Experts per token on average: every expert takes this share of the tokens."},
    {"router.expert_choice.max_experts", SMOE_KEY_INT, offsetof(expert_choice_options, max_experts), "0", 0,
     65536, NULL, "experts",
     "Experts that a token keeps at most, those of its largest gates; memory grows with it; 0: as many as "
     "there are."},
    {"router.expert_choice.causal", SMOE_KEY_BOOL, offsetof(expert_choice_options, causal), "false", 0, 0,
     NULL, "",
     "Choose among the tokens at one position of a lane's sequences, so that no choice depends on later "
     "tokens of its sequence; false: among all tokens of a lane, which in a language model look ahead."},
    {"router.expert_choice.within_sequence", SMOE_KEY_BOOL, offsetof(expert_choice_options, within), "false",
     0, 0, NULL, "",
     "Choose within each sequence (of images: among an image's patches) instead of among all tokens of a "
     "lane."},
    {"router.expert_choice.evaluation", SMOE_KEY_CHOICE, offsetof(expert_choice_options, evaluation),
     "tokens", 0, 0, evaluations, "",
     "Who chooses in evaluation and generation: each token its likeliest experts, as many as the capacity "
     "rounded, which never looks ahead; or the experts, as in training.",
     true},
};

static const smoe_keyset keyset_expert_choice = {keys, sizeof keys / sizeof *keys,
                                                 sizeof(expert_choice_options)};

enum { CENTROID };

static smoe_status check_expert_choice(const smoe_config *config) {
  const expert_choice_options *options = smoe_config_options(config, &keyset_expert_choice);
  const smoe_settings *settings = smoe_config_settings(config);
  const int64_t parts = settings->train.lanes * settings->train.micro_batches;
  const int64_t sequences = settings->train.batch_sequences / parts;
  SMOE_CHECK(
      !options->causal || (double)sequences * options->capacity >= (double)settings->moe.experts,
      SMOE_ERR_CONFIG,
      "router.expert_choice.causal: an expert chooses among the %lld sequences that a lane has at a time "
      "(train.batch_sequences over train.lanes and train.micro_batches), too few for moe.experts %lld: "
      "use fewer lanes or micro-batches, or more sequences, until there are %.0f",
      (long long)sequences, (long long)settings->moe.experts,
      (double)settings->moe.experts / options->capacity + 0.5);
  SMOE_CHECK(
      !options->causal || !options->within, SMOE_ERR_CONFIG,
      "router.expert_choice.causal and within_sequence choose among different tokens: set one of them");
  /* Images have no later tokens. */
  if (!options->causal && strcmp(settings->model.family, "vision") != 0)
    smoe_warn("expert_choice: experts choose among whole sequences, so training looks at later tokens%s; "
              "router.expert_choice.causal=true does not",
              options->evaluation == BY_EXPERTS ? ", and so does evaluation: its perplexity is too low" : "");
  return SMOE_OK;
}

static int slots_expert_choice(const smoe_config *config) {
  const expert_choice_options *options = smoe_config_options(config, &keyset_expert_choice);
  const int64_t experts = smoe_config_settings(config)->moe.experts, most = options->max_experts;
  return (int)(most > 0 && most < experts ? most : experts);
}

/* With `causal` the experts choose among sequences that stand beside this one: alone it is theirs to choose. */
static smoe_router_scope scope_expert_choice(const smoe_router *router) {
  const expert_choice_options *options = router->options;
  return options->evaluation == BY_EXPERTS && !options->causal ? SMOE_SCOPE_ALL : SMOE_SCOPE_TOKEN;
}

static void declare_expert_choice(smoe_router *router, smoe_params *params) {
  router->index[CENTROID] = smoe_params_declare(
      params, SMOE_REPLICATED, (int64_t[]){router->n_experts, (int64_t)router->width, 0},
      (smoe_init){SMOE_INIT_ORTHOGONAL, 0.1, false}, true, "moe%d/router/centroid", router->layer);
}

/* Tape: probabilities [N, E]. */
static size_t tape_reals_expert_choice(const smoe_router *router, size_t n) {
  return n * (size_t)router->n_experts;
}

/* Scratch: gradient of the scores [N, E], or one expert's probabilities [N]. */
static size_t scratch_reals_expert_choice(const smoe_router *router, size_t n) {
  return n * (size_t)router->n_experts;
}

/* Value of rank k (from 0) of v [n] in falling order; v is reordered. */
static smoe_real value_of_rank(smoe_real *v, size_t n, size_t k) {
  for (size_t first = 0, end = n;;) {
    const smoe_real pivot = v[first + (end - first) / 2];
    size_t above = first, below = end; /* larger ones end at above, smaller ones begin at below */
    for (size_t i = first; i < below;) {
      const smoe_real x = v[i];
      if (x > pivot) {
        v[i++] = v[above];
        v[above++] = x;
      } else if (x < pivot) {
        v[i] = v[--below];
        v[below] = x;
      } else {
        i++;
      }
    }
    if (k < above)
      end = above;
    else if (k >= below)
      first = below;
    else
      return pivot;
  }
}

/* Put expert e into a token's slots, by falling probabilities p [E]; the last one falls out where all are taken. */
static void insert(int32_t *expert, const smoe_real *p, size_t k, int32_t e) {
  size_t at = 0;
  while (at < k && expert[at] >= 0 && p[expert[at]] >= p[e])
    at++; /* equal: the lower expert was there before */
  if (at == k) return;
  memmove(expert + at + 1, expert + at, (k - 1 - at) * sizeof *expert);
  expert[at] = e;
}

static double load_share_expert_choice(const smoe_router *router) {
  const expert_choice_options *options = router->options;
  return options->capacity / router->n_experts;
}

/* Tokens that an expert takes of n. */
static size_t share_of(const smoe_router *router, size_t n) {
  const expert_choice_options *options = router->options;
  const size_t share = (size_t)((double)n * options->capacity / router->n_experts);
  return share > 0 ? share : 1;
}

/* Every expert chooses among rows first, first + stride, ... before end: the lower row where probabilities are
 * equal. */
static void choose_by_experts(const smoe_router *router, const smoe_route_call *call, size_t first,
                              size_t stride, size_t end) {
  const size_t e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  const smoe_real *p = call->tape;
  smoe_real *value = call->scratch;
  size_t n_real = 0;
  for (size_t t = first; t < end; t += stride) n_real += call->token[t] >= 0;
  if (n_real == 0) return;
  for (size_t i = 0; i < e; i++) {
    size_t n = 0; /* a probability of 0 (padding, no finite score) is never chosen */
    for (size_t t = first; t < end; t += stride)
      if (p[t * e + i] > 0) value[n++] = p[t * e + i];
    size_t left = share_of(router, n_real);
    const smoe_real least = left < n ? value_of_rank(value, n, left - 1) : 0;
    size_t above = 0;
    for (size_t t = first; t < end; t += stride) above += p[t * e + i] > least;
    size_t equal = left > above ? left - above : 0;
    for (size_t t = first; t < end; t += stride) {
      const smoe_real g = p[t * e + i];
      if (!(g > 0) || g < least || (g == least && equal == 0)) continue;
      if (g == least) equal--;
      insert(call->expert + t * k, p + t * e, k, (int32_t)i);
    }
  }
}

/* Each token takes its likeliest experts; p holds scores before, and probabilities after. */
static void choose_by_tokens(const smoe_router *router, const smoe_route_call *call) {
  const expert_choice_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  size_t m = (size_t)(options->capacity + 0.5);
  m = m < 1 ? 1 : m > k ? k : m;
  smoe_scores_top(call->expert, k, call->tape, call->token, n, e, m);
  smoe_scores_softmax(call->tape, call->token, n, e);
}

static void choose_expert_choice(const smoe_router *router, const smoe_route_call *call) {
  const expert_choice_options *options = router->options;
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  smoe_real *p = call->tape;
  memset(call->expert, 0xff, n * k * sizeof *call->expert);
  smoe_scores_forward(p, call->x, smoe_params_shared(router->params, router->index[CENTROID]), n,
                      router->width, e);
  if (!call->context->training && options->evaluation == BY_TOKENS) {
    choose_by_tokens(router, call);
  } else {
    const size_t groups = options->causal ? call->n_context : 1, t = call->n_context;
    smoe_scores_softmax(p, call->token, n, e);
    for (size_t s = 0; s < call->n_sequences && options->within; s++)
      choose_by_experts(router, call, s * t, 1, (s + 1) * t);
    for (size_t g = 0; g < groups && n > 0 && !options->within; g++)
      choose_by_experts(router, call, g, groups, n);
  }
}

static void gate_expert_choice(const smoe_router *router, const smoe_route_call *call) {
  const size_t n = call->n_tokens, e = (size_t)router->n_experts, k = (size_t)router->n_slots;
  for (size_t s = 0; s < n * k; s++) {
    const int32_t a = smoe_slot_expert(call->expert[s]);
    call->gate[s] = a < 0 ? 0 : call->tape[s / k * e + (size_t)a];
  }
}

static void backward_expert_choice(const smoe_router *router, const smoe_route_call *call,
                                   const smoe_route_loads *loads, smoe_real *dx, const smoe_real *dgate) {
  const size_t n = call->n_tokens, c = router->width, e = (size_t)router->n_experts;
  const size_t k = (size_t)router->n_slots;
  smoe_real *dz = call->scratch;
  memset(dz, 0, n * e * sizeof *dz);
  for (size_t s = 0; s < n * k; s++) {
    const int32_t a = smoe_slot_expert(call->expert[s]);
    if (a >= 0) dz[s / k * e + (size_t)a] = dgate[s]; /* gate = p_e */
  }
  smoe_scores_softmax_backward(dz, call->tape, n, e);
  smoe_linear_backward_weight(smoe_params_lane_grad(router->params, router->index[CENTROID], call->lane),
                              NULL, dz, call->x, n, c, e);
  smoe_linear_backward_input(dx, dz, smoe_params_shared(router->params, router->index[CENTROID]), n, c, e,
                             true);
}

const smoe_router_ops smoe_router_expert_choice = {
    .name = "expert_choice",
    .title = "Expert Choice: experts choose tokens; looks ahead in language models unless causal",
    .keyset = &keyset_expert_choice,
    .check = check_expert_choice,
    .scope = scope_expert_choice,
    .slots = slots_expert_choice,
    .load_share = load_share_expert_choice,
    .declare = declare_expert_choice,
    .tape_reals = tape_reals_expert_choice,
    .scratch_reals = scratch_reals_expert_choice,
    .choose = choose_expert_choice,
    .gate = gate_expert_choice,
    .backward = backward_expert_choice,
};
