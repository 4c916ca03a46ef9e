/* Memory and messages of a training on ranks that are not there. */
#include "stablemoe/rank_plan.h"

#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/bench.h"
#include "stablemoe/family.h"
#include "stablemoe/moe_layer.h"
#include "stablemoe/train.h"

const char *smoe_plan_phase_name(smoe_plan_phase phase) {
  static const char *const names[SMOE_PLAN_PHASES] = {"counts", "exchange", "reduction", "norms", "sharing"};
  return names[phase];
}

const char *smoe_plan_work_name(smoe_plan_work work) {
  static const char *const names[SMOE_PLAN_WORKS] = {"linear", "attention", "head", "experts", "passes"};
  return names[work];
}

static smoe_group group_of(const smoe_plan *plan, int rank) {
  return (smoe_group){
      .comm = MPI_COMM_SELF, .rank = rank, .n_ranks = plan->n_ranks, .planned_per_node = plan->per_node};
}

/* ---- memory ---- */

static double most(double a, double b) {
  return a > b ? a : b;
}

/* What a rank does with gradients and parameters that it has or owns. */
static void count_slabs(smoe_plan *plan, const smoe_params *params) {
  double moved = 0, stepped = 0;
  for (int s = 0; s < params->n_slabs; s++) {
    const smoe_slab *slab = &params->slab[s];
    if (!slab->learns) continue;
    const double size = (double)slab->n_local * (double)slab->count, slice = (double)slab->slice_count;
    /* Every lane is set to zero and all but one added, then the slices of the other holders; at last a copy. */
    moved += slab->lanes.count * size + 3.0 * (slab->lanes.count - 1) * size +
             3.0 * (slab->holders.n_ranks - 1) * slice + (slab->lanes.n_lanes > 1 ? 2 * slice : 0);
    stepped += slice;
  }
  plan->reduction_bytes = most(plan->reduction_bytes, moved * sizeof(smoe_real));
  plan->adam_parameters = most(plan->adam_parameters, stepped);
}

static void count_rank(smoe_plan *plan, const smoe_model *model, double *node_expected, double *node_most) {
  const double all = smoe_model_most_bytes(model) + plan->libraries;
  const double expected = smoe_model_expected_bytes(model) + plan->libraries;
  const int lanes = model->params.lanes.count;
  const int experts = model->n_moe ? model->moe[0]->exchange.n_local : 0;
  const bool first = model->params.group.rank == 0;
  if (expected > plan->rank_expected) {
    plan->rank_expected = expected;
    plan->model = (double)model->fixed.peak;
    plan->tape = (double)model->tape.peak;
    plan->scratch = (double)model->scratch.peak;
    plan->copy = model->copy_bytes;
  }
  plan->shared_memory =
      most(plan->shared_memory, (double)(model->params.shared_bytes + model->params.summed_bytes));
  plan->rank_most = most(plan->rank_most, all);
  if (first || lanes < plan->lanes_least) plan->lanes_least = lanes;
  if (first || lanes > plan->lanes_most) plan->lanes_most = lanes;
  if (first || experts < plan->experts_least) plan->experts_least = experts;
  if (first || experts > plan->experts_most) plan->experts_most = experts;
  count_slabs(plan, &model->params);
  *node_expected += expected;
  *node_most += all;
}

/* Lay out every rank's model; *first is that of rank 0, which the caller destroys. */
static smoe_status plan_memory(smoe_plan *plan, const smoe_config *config, const smoe_model_shape *shape,
                               smoe_model **first) {
  double node_expected = 0, node_most = 0;
  smoe_status status = SMOE_OK;
  *first = NULL;
  for (int r = 0; r < plan->n_ranks && status == SMOE_OK; r++) {
    const smoe_group group = group_of(plan, r);
    smoe_model *model = NULL;
    if (r % plan->per_node == 0) node_expected = node_most = 0;
    status = smoe_model_create(&model, config, &group, shape, true);
    if (r == 0) plan->libraries = model->library_bytes;
    if (status == SMOE_OK) count_rank(plan, model, &node_expected, &node_most);
    plan->node_expected = most(plan->node_expected, node_expected);
    plan->node_most = most(plan->node_most, node_most);
    if (r == 0)
      *first = model;
    else
      smoe_model_destroy(model);
  }
  return status;
}

/* ---- work ---- */

static void plan_work(smoe_plan *plan, const smoe_model *model, double micro_batches) {
  for (int i = 0; i < model->n_layers; i++) {
    const smoe_layer_spec *spec = &model->layer[i].spec, *before = i > 0 ? &model->layer[i - 1].spec : NULL;
    const smoe_work work = smoe_model_layer_work(model, i, false);
    const smoe_plan_work kind = spec->moe >= 0                    ? SMOE_PLAN_EXPERTS
                                : &model->layer[i] == model->head ? SMOE_PLAN_HEAD
                                                                  : SMOE_PLAN_LINEAR;
    const bool begins =
        spec->block >= 0 && (!before || before->block != spec->block || before->stream != spec->stream);
    const double rows = (double)model->shape[spec->stream].n_global * (double)spec->width;
    plan->work[kind] += micro_batches * smoe_bench_product_flops(&work);
    plan->work[SMOE_PLAN_ATTENTION] += micro_batches * work.other;
    plan->work[SMOE_PLAN_PASSES] += micro_batches * rows * (begins + (spec->moe >= 0));
    smoe_free(work.product);
  }
}

/* ---- messages ---- */

/* What one phase sends. */
typedef struct traffic {
  const smoe_plan *plan;
  smoe_plan_traffic *sum;
  double *leaves; /* [n_nodes] bytes to other nodes */
} traffic;

static int node_of(const traffic *t, int rank) {
  return rank / t->plan->per_node;
}

/* Messages from rank a to rank b, bytes in all. */
static void send(const traffic *t, int a, int b, double messages, double bytes) {
  if (a == b || bytes == 0) return;
  if (node_of(t, a) == node_of(t, b)) {
    t->sum->messages_within += messages;
    t->sum->bytes_within += bytes;
  } else {
    t->sum->messages_between += messages;
    t->sum->bytes_between += bytes;
    t->leaves[node_of(t, a)] += bytes;
  }
}

/* Ranks of one of the groups that meet in a collective: first, first + stride, ... */
typedef struct members {
  int first, stride, n;
} members;

static int member(const members *m, int i) {
  return m->first + i * m->stride;
}

/* Bruck's Allgather: in the round of distance d a rank sends d blocks, or those that are still missing. */
static void send_allgather(const traffic *t, const members *m, double block) {
  for (int d = 1; d < m->n; d *= 2)
    for (int i = 0; i < m->n; i++)
      send(t, member(m, i), member(m, (i - d + m->n) % m->n), 1, (d < m->n - d ? d : m->n - d) * block);
}

static double slice_bytes(size_t count, int i, int n) {
  return (double)(smoe_slice_first(count, i + 1, n) - smoe_slice_first(count, i, n)) * sizeof(smoe_real);
}

/* An Allgather in a ring: a rank passes on every slice but the one that its neighbour owns. */
static void send_ring(const traffic *t, const members *m, size_t count) {
  for (int i = 0; i < m->n; i++) {
    const int next = (i + 1) % m->n;
    const double bytes = (double)count * sizeof(smoe_real) - slice_bytes(count, next, m->n);
    send(t, member(m, i), member(m, next), m->n - 1, bytes);
  }
}

/* smoe_reduce_lanes: a rank sends the slice of every node of the tree that it has to the slice's owner. */
static void send_reduction(const traffic *t, const members *m, int n_lanes, size_t count) {
  for (int i = 0; i < m->n; i++) {
    const int nodes = smoe_reduce_nodes(n_lanes, i, m->n);
    for (int j = 0; j < m->n; j++)
      send(t, member(m, i), member(m, j), nodes, nodes * slice_bytes(count, j, m->n));
  }
}

/* smoe_reduce_lanes_nodes: to the slice's owner the nodes of the tree that each other node has, from one rank there. */
static void send_two_level(const traffic *t, const smoe_model *model, size_t count) {
  const smoe_nodes *nodes = &model->params.topology.machines;
  const smoe_group all = group_of(t->plan, 0);
  for (int x = 0; x < nodes->n_nodes; x++) {
    const int n = smoe_reduce_nodes_of(model->params.lanes.n_lanes, &all, nodes, x);
    for (int r = 0; r < all.n_ranks; r++)
      if (x != nodes->node[r])
        send(t, smoe_nodes_partner(nodes, x, r), r, n, n * slice_bytes(count, r, all.n_ranks));
  }
}

/* One transfer of the rows of an MoE layer: to the experts, or back. */
typedef struct transfer {
  const traffic *traffic;
  const smoe_exchange *exchange;
  int first, n_ranks; /* of a replica */
  double lane_rows;   /* rows that the tokens of a lane make */
  int n_lanes;
  double row_bytes;
  bool back;
} transfer;

/* Bytes of the rows that rank s sends to rank d of the replica: those of s's tokens for d's experts; back: of d's
 * tokens from s's experts. */
static double bytes_to(const transfer *x, int s, int d) {
  const int a = x->back ? d : s, b = x->back ? s : d;
  const int e = x->exchange->shape.n_experts, world = x->traffic->plan->n_ranks;
  const int experts = smoe_expert_first(e, b + 1, x->n_ranks) - smoe_expert_first(e, b, x->n_ranks);
  const int lanes = smoe_lanes_of_rank(x->n_lanes, x->first + a, world).count;
  return lanes * x->lane_rows * experts / e * x->row_bytes;
}

static void send_rows(const transfer *x, int s, int d, double messages, double bytes) {
  send(x->traffic, x->first + s, x->first + d, messages, bytes);
}

/* Ranks of the replica on node `node`: first .. return - 1. */
static int ranks_on(const transfer *x, int node, int *first) {
  const int per_node = x->traffic->plan->per_node, end = (node + 1) * per_node - x->first;
  const int begin = node * per_node - x->first;
  *first = begin > 0 ? begin : 0;
  return end < x->n_ranks ? end : x->n_ranks;
}

/* From all ranks of node p by way of one there and one of node q, as src/comm/exchange_schedule.c does it: groups of
 * experts are no stretch of a rank's rows, and what is handed out goes by sender. */
static void send_by_nodes(const transfer *x, int p, int q, int first_node) {
  int p_first, q_first;
  const int p_end = ranks_on(x, p, &p_first), q_end = ranks_on(x, q, &q_first);
  const int groups = x->exchange->n_groups, pieces = groups > 1 ? groups * (q_end - q_first) : 1;
  const int out = p_first + (q - first_node) % (p_end - p_first);
  const int in = q_first + (p - first_node) % (q_end - q_first);
  double all = 0;
  for (int s = p_first; s < p_end; s++) {
    double bytes = 0;
    for (int d = q_first; d < q_end; d++) {
      bytes += bytes_to(x, s, d);
      send_rows(x, in, d, groups, bytes_to(x, s, d));
    }
    send_rows(x, s, out, pieces, bytes);
    all += bytes;
  }
  send_rows(x, out, in, groups, all);
}

static void send_transfer(const transfer *x) {
  const bool by_nodes = x->exchange->shape.options.kind == SMOE_EXCHANGE_TWO_LEVEL;
  const int first_node = x->first / x->traffic->plan->per_node;
  const int last_node = (x->first + x->n_ranks - 1) / x->traffic->plan->per_node;
  for (int s = 0; s < x->n_ranks; s++)
    for (int d = 0; d < x->n_ranks; d++)
      if (!by_nodes || node_of(x->traffic, x->first + s) == node_of(x->traffic, x->first + d))
        send_rows(x, s, d, x->exchange->n_groups, bytes_to(x, s, d));
  for (int p = first_node; p <= last_node && by_nodes; p++)
    for (int q = first_node; q <= last_node; q++)
      if (p != q) send_by_nodes(x, p, q, first_node);
}

/* Forward: rows to the experts, results back. Backward: their gradients, and the rows' gradients back. */
static void send_layer(const traffic *t, const smoe_model *model, const smoe_layer *layer) {
  const smoe_moe_layer *moe = model->moe[layer->spec.moe];
  const smoe_token_shape *tokens = &model->shape[moe->stream];
  const int replicas = t->plan->n_ranks / t->plan->expert_ranks;
  const bool learns = layer->number >= model->lowest;
  const smoe_exchange *out = moe->out == moe->width ? &moe->exchange : &moe->narrow;
  transfer x = {.traffic = t,
                .n_ranks = t->plan->expert_ranks,
                .lane_rows = (double)tokens->lane_tokens * moe->router.n_slots,
                .n_lanes = model->params.lanes.n_lanes};
  for (int i = 0; i < 4; i++) {
    const bool wide = i == 0 || i == 3;
    if ((i >= 2 && !learns) || (i == 3 && layer->spec.data)) continue;
    x.exchange = wide ? &moe->exchange : out;
    x.row_bytes = (double)x.exchange->row_bytes;
    x.back = i % 2 == 1;
    for (int p = 0; p < replicas; p++) {
      x.first = p * x.n_ranks;
      send_transfer(&x);
    }
  }
}

/* Holders of a slab: all ranks, or for experts the ranks of one place in each replica. Returns the sets there are. */
static int holders_of(const smoe_plan *plan, const smoe_slab *slab, int set, members *m) {
  if (slab->n_experts == 0) {
    *m = (members){0, 1, plan->n_ranks};
    return 1;
  }
  *m = (members){set, plan->expert_ranks, plan->n_ranks / plan->expert_ranks};
  return plan->expert_ranks;
}

/* Elements of a slab on the ranks of one place: [n_local, count]. */
static size_t slab_size_at(const smoe_plan *plan, const smoe_slab *slab, int set) {
  if (slab->n_experts == 0) return slab->count;
  const int g = plan->expert_ranks;
  return (size_t)(smoe_expert_first(slab->n_experts, set + 1, g) -
                  smoe_expert_first(slab->n_experts, set, g)) *
         slab->count;
}

/* smoe_share_slices_nodes: a rank sends its slice to one rank of every other node. */
static void send_slices(const traffic *t, const smoe_nodes *nodes, size_t count) {
  const int n = t->plan->n_ranks;
  for (int r = 0; r < n; r++)
    for (int x = 0; x < nodes->n_nodes; x++)
      if (x != nodes->node[r]) send(t, r, smoe_nodes_partner(nodes, x, r), 1, slice_bytes(count, r, n));
}

static void send_slab(const traffic *t, const smoe_model *model, const smoe_slab *slab,
                      smoe_plan_phase phase) {
  const bool shared = model->params.shared && slab->n_experts == 0;
  members m;
  for (int set = 0, n = 1; set < n; set++) {
    n = holders_of(t->plan, slab, set, &m);
    const size_t size = slab_size_at(t->plan, slab, set);
    if (phase == SMOE_PLAN_REDUCTION && model->params.summed && slab->n_experts == 0)
      send_two_level(t, model, size);
    else if (phase == SMOE_PLAN_REDUCTION)
      send_reduction(t, &m, slab->lanes.n_lanes, size);
    if (phase == SMOE_PLAN_NORMS)
      send_allgather(t, &m, sizeof(double) * (double)size / SMOE_UNIT / m.n); /* a double for each unit */
    if (phase == SMOE_PLAN_SHARING && shared) send_slices(t, &model->params.topology.machines, size);
    if (phase == SMOE_PLAN_SHARING && !shared) send_ring(t, &m, size);
  }
  /* Sums of experts go to all ranks of the replica. */
  for (int p = 0; p < m.n && phase == SMOE_PLAN_NORMS && slab->n_experts > 0; p++) {
    const members replica = {p * t->plan->expert_ranks, 1, t->plan->expert_ranks};
    send_allgather(t, &replica, sizeof(double) * slab->n_experts / (double)replica.n);
  }
}

static void plan_phase(smoe_plan *plan, const smoe_model *model, const smoe_settings *settings,
                       smoe_plan_phase phase) {
  double *leaves = smoe_alloc((size_t)plan->n_nodes * sizeof *leaves);
  const traffic t = {plan, &plan->phase[phase], leaves};
  const members all = {0, 1, plan->n_ranks};
  for (int i = 0; i < model->n_layers; i++) {
    const smoe_layer *layer = &model->layer[i];
    if (layer->spec.moe < 0) continue;
    const smoe_moe_layer *moe = model->moe[layer->spec.moe];
    /* Results of another width have a plan of their own. */
    for (int n = moe->out == moe->width ? 1 : 2; phase == SMOE_PLAN_COUNTS && n > 0; n--)
      send_allgather(&t, &all, sizeof(int32_t) * (layer->spec.experts + 1.0));
    if (phase == SMOE_PLAN_EXCHANGE) send_layer(&t, model, layer);
  }
  for (int s = 0; s < model->params.n_slabs; s++) {
    const smoe_slab *slab = &model->params.slab[s];
    if (slab->learns && slab->count > 0) send_slab(&t, model, slab, phase);
  }
  for (int n = 0; n < plan->n_nodes; n++) t.sum->node_bytes = most(t.sum->node_bytes, leaves[n]);
  if (phase == SMOE_PLAN_COUNTS || phase == SMOE_PLAN_EXCHANGE) { /* in every micro-batch */
    const double times = (double)settings->train.micro_batches;
    double *figure[] = {&t.sum->messages_within, &t.sum->bytes_within, &t.sum->messages_between,
                        &t.sum->bytes_between, &t.sum->node_bytes};
    for (size_t i = 0; i < sizeof figure / sizeof *figure; i++) *figure[i] *= times;
  }
  smoe_free(leaves);
}

/* ---- both ---- */

static smoe_status begin_plan(smoe_plan *plan, const smoe_config *config, smoe_task *task, int n_ranks,
                              int per_node, smoe_model_shape *shape) {
  *plan = (smoe_plan){.n_ranks = n_ranks,
                      .per_node = per_node,
                      .n_nodes = (n_ranks + per_node - 1) / per_node,
                      .tokens = smoe_family_batch_tokens(config)};
  SMOE_TRY(smoe_train_check_ranks(config, n_ranks));
  *shape = (smoe_model_shape){.training = true};
  return task->ops->shape(task, shape, false);
}

smoe_status smoe_plan_make(smoe_plan *plan, const smoe_config *config, smoe_task *task, int n_ranks,
                           int per_node) {
  const smoe_settings *settings = smoe_config_settings(config);
  smoe_model_shape shape;
  smoe_model *model;
  SMOE_TRY(begin_plan(plan, config, task, n_ranks, per_node, &shape));
  const smoe_status status = plan_memory(plan, config, &shape, &model);
  if (status == SMOE_OK) {
    plan->expert_ranks = model->n_moe ? model->topology.experts.n_ranks : 0;
    plan->shared = smoe_params_total(&model->params, SMOE_REPLICATED);
    plan->in_experts = smoe_params_total(&model->params, SMOE_EXPERT);
    plan->flops = smoe_bench_flops(model);
    plan_work(plan, model, (double)settings->train.micro_batches);
    plan->lanes = (int)settings->train.lanes;
    plan->micro_batches = (int)settings->train.micro_batches;
    plan->n_experts = model->n_moe ? (int)settings->moe.experts : 0;
    plan->precision = (smoe_precision)settings->train.precision;
    for (smoe_plan_phase p = 0; p < SMOE_PLAN_PHASES; p++) plan_phase(plan, model, settings, p);
  }
  smoe_model_destroy(model);
  return status;
}

/* ---- what would fit ---- */

/* Bytes of the node that takes most with one key changed; 0 where that cannot be. */
static double bytes_with(const smoe_config *config, smoe_task *task, const smoe_plan *plan,
                         const char *assignment, int per_node) {
  char *text = smoe_config_text(config, false);
  smoe_config *other = NULL;
  smoe_plan changed = {0};
  smoe_model_shape shape;
  smoe_model *model = NULL;
  smoe_status status = smoe_config_stored(config, text, "the configuration", &other);
  smoe_task as_changed = *task;
  if (status == SMOE_OK && assignment[0]) status = smoe_config_override(other, assignment);
  if (status == SMOE_OK) status = smoe_config_resolve(other);
  as_changed.config = other;
  if (status == SMOE_OK) {
    as_changed.settings = smoe_config_settings(other);
    status = begin_plan(&changed, other, &as_changed, plan->n_ranks, per_node, &shape);
  }
  if (status == SMOE_OK) status = plan_memory(&changed, other, &shape, &model);
  smoe_model_destroy(model);
  smoe_config_destroy(other);
  smoe_free(text);
  return status == SMOE_OK ? changed.node_expected : 0;
}

char *smoe_plan_advice(const smoe_config *config, smoe_task *task, const smoe_plan *plan, double node_bytes) {
  enum { TRIED = 14 };
  const smoe_settings *settings = smoe_config_settings(config);
  char *advice = smoe_strdup(""), *tried[TRIED];
  int per_node[TRIED], n = 0;
  if (plan->copy > 0) {
    per_node[n] = plan->per_node;
    tried[n++] = smoe_strdup("train.save=wait");
  }
  for (int64_t m = 2; m <= 8; m *= 2) {
    per_node[n] = plan->per_node;
    tried[n++] = smoe_sprintf("train.micro_batches=%lld", (long long)(m * settings->train.micro_batches));
  }
  per_node[n] = plan->per_node;
  tried[n++] = smoe_strdup("train.recompute=true");
  per_node[n] = plan->per_node;
  tried[n++] = smoe_strdup("train.precision=bf16");
  per_node[n] = plan->per_node;
  tried[n++] = smoe_strdup("comm.share=node");
  for (int p = plan->per_node / 2; p > 0 && n < TRIED; p /= 2) {
    per_node[n] = p;
    tried[n++] = smoe_strdup("");
  }
  bool of_kind[3] = {false}; /* the least change of each kind that does it is enough */
  for (int i = 0; i < n; i++) {
    const int kind = !tried[i][0] ? 2 : strncmp(tried[i], "train.micro", 11) == 0 ? 1 : 0;
    const double bytes = kind && of_kind[kind] ? 0 : bytes_with(config, task, plan, tried[i], per_node[i]);
    if (bytes > 0 && bytes <= node_bytes) {
      char *name = tried[i][0] ? smoe_strdup(tried[i]) : smoe_sprintf("--per-node %d", per_node[i]);
      char *more = smoe_sprintf("%s%s%s", advice, advice[0] ? ", or " : "", name);
      smoe_free(advice);
      smoe_free(name);
      advice = more;
      of_kind[kind] = true;
    }
    smoe_free(tried[i]);
  }
  return advice;
}
