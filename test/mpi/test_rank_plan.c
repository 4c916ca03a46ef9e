/* A plan for ranks that are not there against what these ranks do: every message of an update is counted where it
 * is sent, and every rank's memory is compared. The functions of MPI that send are wrapped here. */
#include "stablemoe/rank_plan.h"

#include "harness.h"
#include "model_fixture.h"
#include "stablemoe/optimizer.h"

enum { PER_NODE = 2 };

/* Of this rank: messages and bytes to ranks of its node [0] and of others [1]; bytes that Allgathers bring. */
static struct { double messages[2], bytes[2], gathered; } seen;
static int own_world;

static int world_rank(MPI_Comm comm, int rank) {
  MPI_Group group, world;
  int found;
  PMPI_Comm_group(comm, &group);
  PMPI_Comm_group(MPI_COMM_WORLD, &world);
  PMPI_Group_translate_ranks(group, 1, &rank, world, &found);
  PMPI_Group_free(&group);
  PMPI_Group_free(&world);
  return found;
}

static void count(MPI_Comm comm, int to, double n, MPI_Datatype type) {
  int size;
  PMPI_Type_size(type, &size);
  const int rank = world_rank(comm, to), other = rank / PER_NODE != own_world / PER_NODE;
  if (n == 0 || rank == own_world) return;
  seen.messages[other]++;
  seen.bytes[other] += n * size;
}

int MPI_Alltoallv(const void *send, const int *counts, const int *offsets, MPI_Datatype type, void *receive,
                  const int *recv_counts, const int *recv_offsets, MPI_Datatype recv_type, MPI_Comm comm) {
  int n;
  PMPI_Comm_size(comm, &n);
  for (int r = 0; r < n; r++) count(comm, r, counts[r], type);
  return PMPI_Alltoallv(send, counts, offsets, type, receive, recv_counts, recv_offsets, recv_type, comm);
}

int MPI_Isend(const void *send, int n, MPI_Datatype type, int to, int tag, MPI_Comm comm,
              MPI_Request *request) {
  count(comm, to, n, type);
  return PMPI_Isend(send, n, type, to, tag, comm, request);
}

int MPI_Allgather(const void *send, int n, MPI_Datatype type, void *receive, int recv_n,
                  MPI_Datatype recv_type, MPI_Comm comm) {
  int size, ranks;
  PMPI_Type_size(recv_type, &size);
  PMPI_Comm_size(comm, &ranks);
  seen.gathered += (ranks - 1.0) * recv_n * size;
  return PMPI_Allgather(send, n, type, receive, recv_n, recv_type, comm);
}

int MPI_Allgatherv(const void *send, int n, MPI_Datatype type, void *receive, const int *counts,
                   const int *offsets, MPI_Datatype recv_type, MPI_Comm comm) {
  int size, ranks, rank;
  PMPI_Type_size(recv_type, &size);
  PMPI_Comm_size(comm, &ranks);
  PMPI_Comm_rank(comm, &rank);
  for (int r = 0; r < ranks; r++) seen.gathered += r == rank ? 0 : (double)counts[r] * size;
  return PMPI_Allgatherv(send, n, type, receive, counts, offsets, recv_type, comm);
}

/* Forget what was seen, and return it added up over the ranks. */
static double *take(double total[5]) {
  double own[] = {seen.messages[0], seen.bytes[0], seen.messages[1], seen.bytes[1], seen.gathered};
  memset(&seen, 0, sizeof seen);
  PMPI_Allreduce(own, total, 5, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  return total;
}

static void check_sent(const smoe_plan *plan, smoe_plan_phase phase, const double total[5],
                       const char *what) {
  const smoe_plan_traffic *t = &plan->phase[phase];
  const double planned[] = {t->messages_within, t->bytes_within, t->messages_between, t->bytes_between};
  for (int i = 0; i < 4; i++)
    CHECK(fabs(planned[i] - total[i]) <= 1e-9 * total[i], "%s, %s [%d]: planned %.17g, sent %.17g", what,
          smoe_plan_phase_name(phase), i, planned[i], total[i]);
}

/* An Allgather's messages are MPI's own, its bytes are not. */
static void check_gathered(const smoe_plan *plan, smoe_plan_phase phase, double gathered, const char *what) {
  const smoe_plan_traffic *t = &plan->phase[phase];
  CHECK(fabs(t->bytes_within + t->bytes_between - gathered) <= 1e-9 * gathered + 1e-9,
        "%s, %s: planned %.17g, got %.17g", what, smoe_plan_phase_name(phase),
        t->bytes_within + t->bytes_between, gathered);
  CHECK((t->messages_within + t->messages_between == 0) == (gathered == 0), "%s, %s", what,
        smoe_plan_phase_name(phase));
}

/* Slices go between nodes in messages where the ranks of a node share a copy, else in an Allgather, as experts' do. */
static void check_shared(const smoe_plan *plan, const smoe_model *model, const double total[5],
                         const char *what) {
  const smoe_plan_traffic *t = &plan->phase[SMOE_PLAN_SHARING];
  const double nodes = plan->n_nodes, count = (double)model->params.slab[SMOE_SLAB_REPLICATED].count;
  const bool replicas = plan->expert_ranks < plan->n_ranks;
  if (!model->params.shared) {
    CHECK(total[0] + total[2] == 0, "%s: %g messages", what, total[0] + total[2]);
    check_gathered(plan, SMOE_PLAN_SHARING, total[4], what);
    return;
  }
  /* Every slice goes to every other node once. */
  CHECK(total[0] == 0 && total[2] == plan->n_ranks * (nodes - 1), "%s: %g messages within, %g between", what,
        total[0], total[2]);
  CHECK(total[3] == (nodes - 1) * count * sizeof(smoe_real), "%s: %g bytes", what, total[3]);
  if (!replicas) check_sent(plan, SMOE_PLAN_SHARING, total, what);
  CHECK(t->bytes_within + t->bytes_between == total[3] + total[4], "%s: planned %g, sent %g and %g", what,
        t->bytes_within + t->bytes_between, total[3], total[4]);
}

static void check_memory(const smoe_plan *plan, const smoe_model *model, const smoe_group *group,
                         const char *what) {
  const double expected = smoe_model_expected_bytes(model);
  double bytes[] = {expected, smoe_model_most_bytes(model),
                    (double)(model->params.shared_bytes + model->params.summed_bytes)};
  double *of_rank = smoe_alloc((size_t)group->n_ranks * sizeof *of_rank), node = 0;
  PMPI_Allgather(&expected, 1, MPI_DOUBLE, of_rank, 1, MPI_DOUBLE, MPI_COMM_WORLD);
  for (int first = 0; first < group->n_ranks; first += PER_NODE) {
    double sum = 0;
    for (int r = first; r < first + PER_NODE && r < group->n_ranks; r++) sum += of_rank[r] + plan->libraries;
    node = sum > node ? sum : node;
  }
  smoe_free(of_rank);
  smoe_group_max_f64(group, bytes, 3);
  CHECK(plan->rank_expected - plan->libraries == bytes[0], "%s: planned %.17g, taken %.17g", what,
        plan->rank_expected - plan->libraries, bytes[0]);
  CHECK(plan->rank_most - plan->libraries == bytes[1], "%s", what);
  CHECK(plan->shared_memory == bytes[2], "%s: planned %.17g, shared %.17g", what, plan->shared_memory,
        bytes[2]);
  CHECK(plan->node_expected == node, "%s: planned %.17g, taken %.17g", what, plan->node_expected, node);
}

/* The kinds of work are all there is, and the rank that steps most parameters steps as many as planned. */
static void check_work(const smoe_plan *plan, const smoe_model *model, const smoe_group *group,
                       const char *what) {
  double sum = 0, stepped = 0;
  for (smoe_plan_work w = 0; w < SMOE_PLAN_PASSES; w++) sum += plan->work[w];
  CHECK(fabs(sum - plan->flops) <= 1e-9 * plan->flops && plan->work[SMOE_PLAN_EXPERTS] > 0,
        "%s: %.17g of %.17g", what, sum, plan->flops);
  for (int s = 0; s < model->params.n_slabs; s++)
    if (model->params.slab[s].m) stepped += (double)model->params.slab[s].slice_count;
  smoe_group_max_f64(group, &stepped, 1);
  CHECK(plan->adam_parameters == stepped, "%s: planned %.17g, stepped %.17g", what, plan->adam_parameters,
        stepped);
  CHECK(plan->reduction_bytes >= stepped * sizeof(smoe_real), "%s", what);
}

static void compare(const smoe_group *group, const char *const *keys, const char *what) {
  model_fixture f;
  smoe_task task;
  smoe_plan plan;
  double total[5];
  fixture_open(&f, group, "topk router.topk.forced_balance=true", keys, 1);
  const size_t n = f.n_micro * f.model->shape[SMOE_MAIN].n_tokens;
  for (size_t t = 0; t < n; t++) f.input[t] = f.target[t] = (int32_t)t % FIXTURE_VOCABULARY; /* no padding */
  smoe_task_synthetic(&task, f.config, group, FIXTURE_VOCABULARY);
  fixture_try(smoe_plan_make(&plan, f.config, &task, group->n_ranks, PER_NODE), what);
  check_memory(&plan, f.model, group, what);
  check_work(&plan, f.model, group, what);

  take(total);
  fixture_gradients(&f);
  take(total);
  check_sent(&plan, SMOE_PLAN_EXCHANGE, total, what);
  check_gathered(&plan, SMOE_PLAN_COUNTS, total[4], what);
  smoe_params_reduce(&f.model->params, f.model->reduce_scratch);
  check_sent(&plan, SMOE_PLAN_REDUCTION, take(total), what);
  smoe_gradient_norms(&f.model->params);
  check_gathered(&plan, SMOE_PLAN_NORMS, take(total)[4], what);
  smoe_optimizer_step(&f.model->params, f.settings, 0, 1);
  check_shared(&plan, f.model, take(total), what);
  smoe_task_close(&task);
  fixture_close(&f);
}

int main(int argc, char **argv) {
  smoe_group group;
  smoe_group_start(&group, &argc, &argv);
  own_world = group.rank;
  static const char *const common[] = {"moe.experts=4",   "train.lanes=4",         "train.batch_sequences=16",
                                       "model.context=6", "train.micro_batches=2", "comm.node_ranks=2"};
  static const struct {
    const char *name, *key[4];
  } cases[] = {{"direct", {NULL}},
               {"linear", {"comm.alltoallv=linear", NULL}},
               {"two-level", {"comm.exchange=two_level", NULL}},
               {"two-level, overlap", {"comm.exchange=two_level", "comm.overlap=2", "moe.experts=8", NULL}},
               {"bf16", {"train.precision=bf16", NULL}},
               {"overlap", {"comm.overlap=2", "moe.experts=8", NULL}},
               {"seven lanes", {"train.lanes=7", "train.batch_sequences=28", NULL}},
               {"replicas", {"comm.expert_ranks=2", NULL}},
               {"two-level sums", {"comm.reduction=two_level", NULL}},
               {"two-level sums, copies", {"comm.reduction=two_level", "comm.share=rank", NULL}},
               {"two-level sums, seven lanes",
                {"comm.reduction=two_level", "train.lanes=7", "train.batch_sequences=28", NULL}},
               {"two-level sums, replicas", {"comm.reduction=two_level", "comm.expert_ranks=2", NULL}},
               {"copies", {"comm.share=rank", NULL}},
               {"copies, replicas", {"comm.share=rank", "comm.expert_ranks=2", NULL}}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const char *keys[16];
    size_t n = 0;
    for (; n < sizeof common / sizeof *common; n++) keys[n] = common[n];
    for (size_t k = 0; cases[i].key[k]; k++) keys[n++] = cases[i].key[k];
    keys[n] = NULL;
    if (strstr(cases[i].name, "replicas") && group.n_ranks % 2) continue;
    if (strcmp(cases[i].name, "bf16") == 0 && sizeof(smoe_real) > 4) continue;
    compare(&group, keys, cases[i].name);
  }
  smoe_group_end(&group);
  return test_verdict("test_rank_plan");
}
