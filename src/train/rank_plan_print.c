/* A plan for ranks that are not there, as a table and as JSON. */
#include "stablemoe/json.h"
#include "stablemoe/rank_plan.h"

static const double MIB = 1 << 20, GIB = 1 << 30;

static void print_traffic(const smoe_plan *plan, FILE *out) {
  fprintf(out, "\n  messages of an update, all ranks    within nodes          MiB  between nodes          "
               "MiB  most of a node, MiB\n");
  for (smoe_plan_phase p = 0; p < SMOE_PLAN_PHASES; p++) {
    const smoe_plan_traffic *t = &plan->phase[p];
    fprintf(out, "  %-32s %15.0f %12.1f %14.0f %12.1f %20.1f\n", smoe_plan_phase_name(p), t->messages_within,
            t->bytes_within / MIB, t->messages_between, t->bytes_between / MIB, t->node_bytes / MIB);
  }
}

static void print_range(FILE *out, int least, int most) {
  if (least == most)
    fprintf(out, "%d", most);
  else
    fprintf(out, "%d to %d", least, most);
}

static void print_table(const smoe_plan *plan, double node_bytes, FILE *out) {
  fprintf(out, "plan for %d ranks, %d per node, %d nodes\n", plan->n_ranks, plan->per_node, plan->n_nodes);
  fprintf(out, "  parameters   %lld shared, %lld in experts\n", (long long)plan->shared,
          (long long)plan->in_experts);
  fputs("  a rank has   ", out);
  print_range(out, plan->lanes_least, plan->lanes_most);
  fputs(" lanes", out);
  if (plan->expert_ranks > 0) {
    fputs(" and ", out);
    print_range(out, plan->experts_least, plan->experts_most);
    fprintf(out, " experts of an MoE layer; %d ranks hold every expert once, %d replicas", plan->expert_ranks,
            plan->n_ranks / plan->expert_ranks);
  }
  fprintf(out, "\n  an update    %lld tokens, %.4g GFLOP\n", (long long)plan->tokens, 1e-9 * plan->flops);
  fprintf(
      out,
      "  memory       %.1f MiB per rank expected with balanced routing, %.1f MiB at most (model %.1f, tape "
      "%.1f, scratch %.1f, libraries %.1f",
      plan->rank_expected / MIB, plan->rank_most / MIB, plan->model / MIB, plan->tape / MIB,
      plan->scratch / MIB, plan->libraries / MIB);
  if (plan->copy > 0) fprintf(out, ", copy for saving %.1f", plan->copy / MIB);
  fputs(")\n", out);
  fprintf(out, "               %.2f GiB per node expected, %.2f GiB at most", plan->node_expected / GIB,
          plan->node_most / GIB);
  if (node_bytes > 0)
    fprintf(out, ", of %.2f GiB: %s", node_bytes / GIB,
            plan->node_expected <= node_bytes ? "fits" : "does not fit");
  fputc('\n', out);
  if (plan->shared_memory > 0)
    fprintf(out,
            "               %.2f GiB of it shared by the ranks of a node, in /dev/shm (comm.share: node), "
            "which by "
            "default holds half of a node's memory\n",
            plan->shared_memory / GIB);
  print_traffic(plan, out);
}

static void print_json(const smoe_plan *plan, double node_bytes, FILE *out) {
  smoe_json json;
  smoe_json_begin(&json, out, 1);
  smoe_json_object(&json, NULL);
  smoe_json_int(&json, "ranks", plan->n_ranks);
  smoe_json_int(&json, "per_node", plan->per_node);
  smoe_json_int(&json, "nodes", plan->n_nodes);
  smoe_json_int(&json, "expert_ranks", plan->expert_ranks);
  smoe_json_int(&json, "lanes_of_rank", plan->lanes_most);
  smoe_json_int(&json, "experts_of_rank", plan->experts_most);
  smoe_json_int(&json, "shared_parameters", plan->shared);
  smoe_json_int(&json, "expert_parameters", plan->in_experts);
  smoe_json_int(&json, "tokens", plan->tokens);
  smoe_json_int(&json, "lanes", plan->lanes);
  smoe_json_int(&json, "micro_batches", plan->micro_batches);
  smoe_json_int(&json, "experts", plan->n_experts);
  smoe_json_text(&json, "precision", smoe_precision_name(plan->precision));
  smoe_json_real(&json, "flops", plan->flops, 9);
  smoe_json_object(&json, "work");
  for (smoe_plan_work w = 0; w < SMOE_PLAN_WORKS; w++)
    smoe_json_real(&json, smoe_plan_work_name(w), plan->work[w], 15);
  smoe_json_end(&json);
  smoe_json_real(&json, "reduction_bytes", plan->reduction_bytes, 15);
  smoe_json_real(&json, "adam_parameters", plan->adam_parameters, 15);
  smoe_json_object(&json, "memory");
  smoe_json_real(&json, "rank_expected_bytes", plan->rank_expected, 15);
  smoe_json_real(&json, "rank_most_bytes", plan->rank_most, 15);
  smoe_json_real(&json, "model_bytes", plan->model, 15);
  smoe_json_real(&json, "tape_bytes", plan->tape, 15);
  smoe_json_real(&json, "scratch_bytes", plan->scratch, 15);
  smoe_json_real(&json, "copy_bytes", plan->copy, 15);
  smoe_json_real(&json, "library_bytes", plan->libraries, 15);
  smoe_json_real(&json, "node_expected_bytes", plan->node_expected, 15);
  smoe_json_real(&json, "node_most_bytes", plan->node_most, 15);
  smoe_json_real(&json, "shared_memory_bytes", plan->shared_memory, 15);
  if (node_bytes > 0)
    smoe_json_real(&json, "node_bytes", node_bytes, 15);
  else
    smoe_json_null(&json, "node_bytes");
  smoe_json_end(&json);
  smoe_json_object(&json, "traffic");
  for (smoe_plan_phase p = 0; p < SMOE_PLAN_PHASES; p++) {
    const smoe_plan_traffic *t = &plan->phase[p];
    smoe_json_object(&json, smoe_plan_phase_name(p));
    smoe_json_real(&json, "messages_within", t->messages_within, 15);
    smoe_json_real(&json, "bytes_within", t->bytes_within, 15);
    smoe_json_real(&json, "messages_between", t->messages_between, 15);
    smoe_json_real(&json, "bytes_between", t->bytes_between, 15);
    smoe_json_real(&json, "most_of_a_node_bytes", t->node_bytes, 15);
    smoe_json_end(&json);
  }
  smoe_json_end(&json);
  smoe_json_end(&json);
  smoe_json_finish(&json);
}

void smoe_plan_print(const smoe_plan *plan, double node_bytes, bool json, FILE *out) {
  if (json)
    print_json(plan, node_bytes, out);
  else
    print_table(plan, node_bytes, out);
}
