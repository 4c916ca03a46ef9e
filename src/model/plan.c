/* What a model says of its memory before it is reserved. */
#include <stdio.h>

#include "stablemoe/log.h"
#include "stablemoe/memory.h"
#include "stablemoe/model.h"

static const double MIB = 1 << 20;

/* Bytes of the worst case that balanced routing leaves untouched. */
static double untouched(const smoe_model *model) {
  double bytes = 0;
  for (int i = 0, first = 1; i < model->n_layers; i++) {
    const smoe_layer_ops *ops = model->layer[i].spec.ops;
    if (!ops->untouched) continue;
    bytes += ops->untouched(&model->layer[i], model->training && i >= model->lowest, first);
    first = 0;
  }
  return bytes;
}

double smoe_model_most_bytes(const smoe_model *model) {
  return (double)(model->fixed.peak + model->tape.peak + model->scratch.peak) +
         smoe_params_shared_part(&model->params) + model->copy_bytes;
}

double smoe_model_expected_bytes(const smoe_model *model) {
  return smoe_model_most_bytes(model) - untouched(model);
}

/* What comes of comm.reduction: two_level. */
static void describe_reduction(const smoe_model *model) {
  const smoe_params *params = &model->params;
  const smoe_nodes *nodes = &params->topology.machines;
  if (smoe_config_settings(model->config)->comm.reduction != SMOE_REDUCTION_TWO_LEVEL || !model->training)
    return;
  double bytes = (double)params->summed_bytes;
  smoe_group_max_f64(&params->group, &bytes, 1);
  if (params->summed)
    smoe_note("reduction: within each of %d node%s, whose ranks have at most %.1f MiB of gradients in shared "
              "memory, then between nodes",
              nodes->n_nodes, nodes->n_nodes == 1 ? "" : "s", bytes / MIB);
  else if (nodes->n_nodes > 0 && !smoe_nodes_consecutive(nodes))
    smoe_warn("comm.reduction: two_level wants nodes of consecutive ranks, and these are dealt out in turn: "
              "the reduction is direct; start ranks in blocks (mpirun --map-by core, srun -m block)");
}

/* Give the copy of checkpoints up where it is what a machine's memory does not take. */
static void settle_copy(smoe_model *model, const smoe_memory *memory, int ranks_here) {
  const smoe_group *group = &model->params.group;
  const double expected = smoe_model_expected_bytes(model);
  double bytes[] = {expected, expected - model->copy_bytes, model->copy_bytes};
  smoe_group_max_f64(group, bytes, 3);
  double missing =
      memory->bytes > 0 && bytes[0] * ranks_here > memory->bytes && bytes[1] * ranks_here <= memory->bytes;
  smoe_group_max_f64(group, &missing, 1);
  if (missing == 0) return;
  smoe_note(
      "updates wait for checkpoints, as with train.save: wait: the memory there is does not take a copy "
      "of %.1f MiB per rank",
      bytes[2] / MIB);
  model->copy_bytes = 0;
}

smoe_status smoe_model_print_plan(smoe_model *model) {
  const smoe_params *params = &model->params;
  const smoe_memory memory = smoe_memory_free();
  const int ranks_here = smoe_group_ranks_here(&params->group);
  if (model->copy_bytes > 0) settle_copy(model, &memory, ranks_here);
  double bytes[] = {(double)model->fixed.peak,        (double)model->tape.peak,
                    (double)model->scratch.peak,      smoe_model_most_bytes(model),
                    smoe_model_expected_bytes(model), model->library_bytes,
                    smoe_params_shared_part(params),  model->copy_bytes};
  smoe_group_max_f64(&params->group, bytes, 8);
  smoe_note("parameters: %lld shared, %lld in experts", (long long)smoe_params_total(params, SMOE_REPLICATED),
            (long long)smoe_params_total(params, SMOE_EXPERT));
  if (smoe_params_total_frozen(params) > 0)
    smoe_note("of these frozen from the start: %lld; their gradients and moments would take %.1f MiB more on "
              "this rank",
              (long long)smoe_params_total_frozen(params), smoe_params_spared(params) / MIB);
  if (model->lowest > 0)
    smoe_note("no gradient is computed below '%s', the first of %d layers that learns",
              model->layer[model->lowest].spec.name, model->n_layers);
  char shared[64] = "";
  const bool together = params->shared || params->summed;
  if (together) snprintf(shared, sizeof shared, ", part of the node's %.1f", bytes[6] / MIB);
  smoe_note("memory per rank (largest of %d): %.1f MiB expected with balanced routing; at most %.1f MiB "
            "(model %.1f, tape %.1f, scratch %.1f%s)",
            params->group.n_ranks, bytes[4] / MIB, bytes[3] / MIB, bytes[0] / MIB, bytes[1] / MIB,
            bytes[2] / MIB, shared);
  if (bytes[7] > 0)
    smoe_note("of these %.1f MiB for the copy of a checkpoint that is written in the background",
              bytes[7] / MIB);
  if (params->shared)
    smoe_note("shared parameters: %.1f MiB, once for the ranks of each of %d node%s (comm.share: node)",
              (double)params->shared_bytes / MIB, params->topology.machines.n_nodes,
              params->topology.machines.n_nodes == 1 ? "" : "s");
  describe_reduction(model);
  smoe_note("libraries per rank, in memory already: %.1f MiB; with the expected part of the plan %.1f MiB",
            bytes[5] / MIB, (bytes[4] + bytes[5]) / MIB);
  if (model->n_moe) {
    char text[256];
    smoe_exchange_describe(&model->moe[0]->exchange, text, sizeof text);
    smoe_note("exchange of tokens: %s", text);
  }
  const double here = bytes[4] * ranks_here;
  if (memory.bytes > 0 && here > memory.bytes)
    return SMOE_FAIL(SMOE_ERR_MEMORY,
                     "%.1f MiB expected for the ranks on this machine, but %s leaves %.1f MiB: use more "
                     "machines, a smaller train.batch_sequences, or more train.micro_batches",
                     here / MIB, memory.limit, memory.bytes / MIB);
  if (memory.bytes > 0 && bytes[3] * ranks_here > memory.bytes)
    smoe_warn("if all tokens went to one rank's experts, memory would not suffice (%s leaves %.1f MiB): "
              "moe.capacity_factor bounds that",
              memory.limit, memory.bytes / MIB);
  return SMOE_OK;
}
