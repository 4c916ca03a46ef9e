#!/usr/bin/env python3
"""Configurations that are compared with the reference.

    cases.py {plain,methods,runs}     print the names, one a line: each is a test of its own

CASES and METHODS are carried out by the dump program, RUNS are whole runs of stablemoe.
"""

import sys

BASE = {
    "run.seed": 7, "model.width": 16, "model.blocks": 3, "model.heads": 2, "model.inner": 24,
    "model.context": 8, "model.scale_embedding": "true", "moe.layers": 2, "moe.position": "scattered",
    "moe.experts": 5, "moe.sublayers": 2, "moe.inner": 20, "moe.capacity_factor": 0,
    "router.method": "stable", "router.stage1_updates": 2, "router.stable.width": 6,
    "router.stable.distill_weight": 0.7, "train.updates": 10, "train.batch_sequences": 8,
    "train.micro_batches": 1, "train.lanes": 4, "optimizer.lr": 0.02, "optimizer.decay": 0.1,
    "optimizer.clip": 0.1, "schedule.warmup": 3,
}

# Rows that do not fit, uneven shares, several MoE layers, lanes and micro-batches.
INCONVENIENT = {"moe.capacity_factor": 0.9, "train.micro_batches": 2, "train.lanes": 3,
                "train.batch_sequences": 12, "moe.sublayers": 1}

# Gates on two of four blocks, above the target, uneven shares of lanes.
GATES = {"moe.layers": 0, "model.blocks": 4, "model.skip.layers": 2, "model.skip.target": 0.1, "model.skip.weight": 0.7,
         "train.micro_batches": 2, "train.lanes": 3, "train.batch_sequences": 12}

# Name: what differs from BASE, and what the case must meet.
CASES = {
    "stage-1": ({}, {"stages": [1, 1]}),
    "stage-1-capacity": ({"moe.capacity_factor": 1.0, "train.micro_batches": 2},
                         {"stages": [1, 1], "dropped": True}),
    "stage-2": ({"router.stage1_updates": 0, "train.micro_batches": 2}, {"stages": [2, 2]}),
    "stage-2-capacity": ({"router.stage1_updates": 0, "moe.capacity_factor": 1.0},
                         {"stages": [2, 2], "dropped": True}),
    "switch-of-stages": (
        {"router.stage1_updates": 1, "moe.layers": 1, "moe.position": "middle", "model.blocks": 2,
         "model.scale_embedding": "false", "optimizer.clip": 0, "optimizer.expert_gradient_factor": 5,
         "optimizer.decay": 0, "schedule.kind": "inverse_sqrt", "schedule.warmup": 1},
        {"stages": [1, 2], "clipped": False}),
    "top": ({"moe.layers": 1, "moe.position": "top", "schedule.kind": "constant", "schedule.warmup": 0,
             "optimizer.clip": 1000}, {"clipped": False}),
    "cosine": ({"moe.layers": 1, "moe.position": "middle", "schedule.kind": "cosine", "schedule.warmup": 0,
                "schedule.floor": 0.2, "train.updates": 2}, {}),
    "wsd": ({"moe.layers": 1, "moe.position": "middle", "schedule.kind": "wsd", "schedule.warmup": 0,
             "schedule.decay_share": 1, "train.updates": 2}, {}),
    "bottom": ({"moe.layers": 1, "moe.position": "bottom", "moe.capacity_factor": 0.5,
                "schedule.warmup": 0}, {"dropped": True}),
    "dense": ({"moe.layers": 0, "train.micro_batches": 2}, {"dropped": False}),
    "gates": (dict(GATES, **{"model.skip.what": "attention"}), {"skipped": True}),
}

# Every other way to route. In double alone: some choices hang on differences that float does not resolve.
METHODS = {
    # Distilled routers that look at more than the word.
    "bigram": ({"router.stable.features": "bigram", "train.micro_batches": 2}, {}),
    "cnn": ({"router.stable.features": "cnn", "moe.capacity_factor": 0.8}, {"dropped": True}),
    "transformer": ({"router.stable.features": "transformer", "router.stable.layers": 2,
                     "router.stable.heads": 3, "router.stage1_updates": 1}, {"stages": [1, 2]}),
    # A bias that balances the choice of stage 1, and gates that begin near one.
    "stable-bias": (dict(INCONVENIENT, **{
        "router.stable.bias_rate": 0.015625, "router.stable.gate_start": 0.9, "router.stable.balance_weight": 0.2,
        "router.stage1_updates": 1}), {"stages": [1, 2], "dropped": True}),
    # Methods, where a wrong count, unit or order shows: rows that do not fit, several slots, lanes and parts.
    "base": (dict(INCONVENIENT, **{"router.method": "base"}), {"dropped": True}),
    "base-stage-2": (dict(INCONVENIENT, **{
        "router.method": "base_stage2", "router.stage1_updates": 1, "router.base_stage2.distill_weight": 0.6,
        "router.base_stage2.width": 6, "router.base_stage2.features": "bigram"}),
                     {"dropped": True, "stages": [1, 2]}),
    "switch": (dict(INCONVENIENT, **{"router.method": "switch", "router.switch.balance_weight": 0.4,
                                     "router.switch.jitter": 0.3, "model.width": 18}), {"dropped": True}),
    "gshard": (dict(INCONVENIENT, **{"router.method": "gshard", "router.gshard.balance_weight": 0.4}),
               {"dropped": True}),
    "gshard-always": ({"router.method": "gshard", "router.gshard.balance_weight": 0.4,
                       "router.gshard.second": "always"}, {}),
    "topk": (dict(INCONVENIENT, **{"router.method": "topk", "router.topk.k": 3,
                                   "router.topk.balance_weight": 0.4}), {"dropped": True}),
    "topk-raw": ({"router.method": "topk", "router.topk.k": 2, "router.topk.normalise": "false",
                  "router.topk.balance_weight": 0.4, "train.micro_batches": 2}, {}),
    # What came after: sigmoids, a bias, the z loss, loads of lanes and sequences.
    "topk-sigmoid": (dict(INCONVENIENT, **{
        "router.method": "topk", "router.topk.k": 2, "router.topk.scores": "sigmoid", "router.topk.bias_rate": 0.015625,
        "router.topk.balance_over": "sequence", "router.topk.balance_weight": 0.4,
        "router.topk.z_loss_weight": 0.03}), {"dropped": True}),
    "topk-sigmoid-raw": ({
        "router.method": "topk", "router.topk.k": 2, "router.topk.scores": "sigmoid", "router.topk.normalise": "false",
        "router.topk.balance_over": "lane", "router.topk.balance_weight": 0.4}, {}),
    "topk-z-loss": (dict(INCONVENIENT, **{
        "router.method": "topk", "router.topk.k": 2, "router.topk.balance_over": "lane", "router.topk.bias_rate": 0.01,
        "router.topk.balance_weight": 0.4, "router.topk.z_loss_weight": 0.05,
        "optimizer.router_lr_factor": 0.3}), {"dropped": True}),
    "topk-in-turn": ({"router.method": "topk", "router.topk.k": 2, "router.topk.forced_balance": "true",
                      "router.topk.balance_weight": 0.4, "train.micro_batches": 2}, {}),
    "recurrent": (dict(INCONVENIENT, **{"router.method": "recurrent", "router.recurrent.width": 6,
                                        "router.recurrent.balance_weight": 0.4, "moe.layers": 3}), {"dropped": True}),
    "recurrent-rnn": ({"router.method": "recurrent", "router.recurrent.cell": "rnn", "router.recurrent.width": 5,
                       "router.recurrent.k": 3, "router.recurrent.scores": "sigmoid",
                       "router.recurrent.bias_rate": 0.015625, "router.recurrent.z_loss_weight": 0.03,
                       "train.micro_batches": 2, "moe.layers": 3}, {}),
    "recurrent-detach": ({"router.method": "recurrent", "router.recurrent.recurrence": "detach",
                          "router.recurrent.width": 6, "router.recurrent.normalise": "false"}, {}),
    "recurrent-none": ({"router.method": "recurrent", "router.recurrent.recurrence": "none",
                        "router.recurrent.width": 6, "router.recurrent.balance_over": "lane"}, {}),
    "recurrent-mlp": ({"router.method": "recurrent", "router.recurrent.cell": "mlp",
                       "router.recurrent.width": 6}, {}),
    "sparsemixer": (dict(INCONVENIENT, **{"router.method": "sparsemixer", "router.sparsemixer.epsilon": 0.7,
                                          "router.sparsemixer.balance_weight": 0.4, "optimizer.decay": 0.1}),
                    {"dropped": True}),
    "sparsemixer-v2": (dict(INCONVENIENT, **{
        "router.method": "sparsemixer", "router.sparsemixer.version": "v2", "router.sparsemixer.k": 2,
        "router.sparsemixer.epsilon": 0.8, "router.sparsemixer.mask": "paper", "router.sparsemixer.omega": "false",
        "router.sparsemixer.bias": "false", "router.sparsemixer.balance_on": "all",
        "router.sparsemixer.balance_weight": 0.4, "router.sparsemixer.z_loss_weight": 0.03}), {"dropped": True}),
    "sparsemixer-v2-star": ({
        "router.method": "sparsemixer", "router.sparsemixer.version": "v2_star", "router.sparsemixer.k": 3,
        "router.sparsemixer.epsilon": 9, "router.sparsemixer.best_whole": "false",
        "router.sparsemixer.expert_gradient": "estimator", "router.sparsemixer.balance_over": "lane"}, {}),
    "sparsemixer-uniform": ({
        "router.method": "sparsemixer", "router.sparsemixer.version": "v1_uniform", "router.sparsemixer.epsilon": 0.9,
        "router.sparsemixer.expert_gradient": "estimator", "train.micro_batches": 2}, {}),
    "expert-choice": (dict(INCONVENIENT, **{
        "router.method": "expert_choice", "router.expert_choice.capacity": 1.5,
        "router.expert_choice.max_experts": 2, "moe.capacity_factor": 0.6}), {"dropped": True}),
    "expert-choice-causal": ({"router.method": "expert_choice", "router.expert_choice.causal": "true",
                              "router.expert_choice.capacity": 3.2, "train.batch_sequences": 16,
                              "train.lanes": 4, "train.micro_batches": 2}, {}),
    "expert-choice-within": (dict(INCONVENIENT, **{
        "router.method": "expert_choice", "router.expert_choice.within_sequence": "true",
        "router.expert_choice.capacity": 1.5, "moe.capacity_factor": 0.2}), {"dropped": True}),
    "hash": (dict(INCONVENIENT, **{"router.method": "hash", "router.hash.variant": "balanced"}),
             {"dropped": True}),
    "hash-segments": (dict(INCONVENIENT, **{"router.method": "hash", "moe.experts": 6, "router.hash.segments": 3,
                                            "router.hash.variant": "previous"}), {"dropped": True}),
    "hash-gate": (dict(INCONVENIENT, **{"router.method": "hash", "moe.experts": 4, "router.hash.gate": "sigmoid",
                                        "router.hash.segments": 2}), {"dropped": True}),
    "hash-bigram": ({"router.method": "hash", "router.hash.variant": "bigram", "moe.experts": 4,
                     "router.hash.segments": 2}, {}),
    "hash-position": ({"router.method": "hash", "router.hash.variant": "position"}, {}),
    "mask": (dict(INCONVENIENT, **{"router.method": "mask", "router.mask.frequent_visible": 3,
                                   "router.mask.frequent_share": 0.6, "router.mask.balance_weight": 0.4}),
             {"dropped": True}),
    "mask-rare": ({"router.method": "mask", "router.mask.draw": "balanced", "router.mask.rare_balance": "false",
                   "router.mask.frequent_visible": 2, "router.mask.balance_weight": 0.4,
                   "train.micro_batches": 2}, {}),
    # Rare ids see one expert and fill one slot of two or three.
    "mask-2": (dict(INCONVENIENT, **{"router.method": "mask", "router.mask.k": 2, "router.mask.frequent_visible": 3,
                                     "router.mask.frequent_share": 0.6, "router.mask.balance_weight": 0.4}),
               {"dropped": True}),
    "mask-3": ({"router.method": "mask", "router.mask.k": 3, "router.mask.normalise": "true",
                "router.mask.rare_balance": "false", "router.mask.balance_weight": 0.4}, {}),
    # Two levels; a lane is on one of two nodes, or of four.
    "smile": (dict(INCONVENIENT, **{"router.method": "smile", "moe.experts": 6, "moe.nodes": 3,
                                    "router.smile.balance_weight": 0.4, "router.smile.place_balance_weight": 0.7}),
              {"dropped": True}),
    "smile-per-node": ({"router.method": "smile", "moe.experts": 6, "moe.nodes": 2, "router.smile.places": "per_node",
                        "router.smile.place_balance_weight": 0.7, "train.micro_batches": 2}, {}),
    "smile-over-all": ({"router.method": "smile", "moe.experts": 8, "moe.nodes": 2,
                        "router.smile.place_balance_over": "all", "router.smile.place_balance_weight": 0.7}, {}),
    "local": (dict(INCONVENIENT, **{"router.method": "local", "moe.experts": 6, "moe.nodes": 3, "model.width": 18,
                                    "router.local.balance_weight": 0.4, "router.local.locality_weight": 0.6}),
              {"dropped": True}),
    "local-numbers": ({"router.method": "local", "moe.experts": 8, "moe.nodes": 2, "router.local.ties": "number",
                       "router.local.remote_share": 0.3, "router.local.locality_weight": 0.6,
                       "train.micro_batches": 2}, {}),
    # Of two experts' scores often both are cut off.
    "local-ties": ({"router.method": "local", "moe.experts": 2, "moe.nodes": 2, "router.local.locality_weight": 0.6}, {}),
    "local-few": ({"router.method": "local", "moe.experts": 2, "moe.nodes": 4, "router.local.relu": "false",
                   "router.local.locality_weight": 0.6}, {}),
    # Two copies of each sequence, and what drives them together.
    "thor": (dict(INCONVENIENT, **{"router.method": "thor", "router.thor.draw": "token",
                                   "router.thor.consistency": 3}), {"dropped": True}),
    "thor-batch": ({"router.method": "thor", "router.thor.distinct": "true", "train.micro_batches": 2,
                    "router.thor.evaluation": "mean"}, {}),
    "thor-lane": ({"router.method": "thor", "router.thor.draw": "lane", "train.micro_batches": 2}, {}),
    "thor-one-copy": (dict(INCONVENIENT, **{"router.method": "thor", "router.thor.draw": "sequence",
                                            "router.thor.copies": 1}), {"dropped": True}),
    # What gates look at, and the three rules of who gives them a gradient.
    "gates-token": (dict(GATES, **{"model.skip.what": "attention", "model.skip.unit": "token",
                                   "model.skip.gradient": "active"}), {"skipped": True}),
    "gates-whole": (dict(GATES, **{"model.skip.what": "attention", "model.skip.mean": "whole",
                                   "model.skip.gradient": "masked"}), {"skipped": True}),
    "gates-ffn": (dict(GATES, **{"model.skip.what": "ffn", "model.skip.gradient": "active"}), {"skipped": True}),
    "gates-ffn-token": (dict(GATES, **{"model.skip.what": "ffn", "model.skip.unit": "token",
                                       "model.skip.layers": 3}), {"skipped": True}),
    "gates-block": (dict(GATES, **{"model.skip.what": "block", "model.skip.gradient": "masked"}), {"skipped": True}),
    "gates-block-whole": (dict(GATES, **{"model.skip.what": "block", "model.skip.mean": "whole", "run.seed": 9}), {"skipped": True}),
    "gates-below-target": (dict(GATES, **{"model.skip.what": "block", "model.skip.unit": "token",
                                          "model.skip.target": 0.6}), {"skipped": True}),
    "gates-moe": (dict(INCONVENIENT, **{
        "router.method": "topk", "router.topk.k": 2, "router.topk.balance_weight": 0.4, "model.skip.what": "attention",
        "model.skip.layers": 2, "model.skip.unit": "token", "model.skip.weight": 0.7}), {"dropped": True, "skipped": True}),
    "gates-only": (dict(GATES, **{"model.skip.what": "attention", "train.only": '["*/gate"]'}),
                   {"skipped": True}),
    "gates-held": (dict(GATES, **{"model.skip.what": "block", "train.frozen": '["embedding/*", "*/attention/norm/*"]'}),
                   {"skipped": True}),
    "gates-random": (dict(GATES, **{"model.skip.what": "attention", "model.skip.choice": "random",
                                    "model.skip.share": 0.3}), {"skipped": True}),
    "gates-random-whole": (dict(GATES, **{"model.skip.what": "block", "model.skip.choice": "random",
                                          "model.skip.mean": "whole"}), {"skipped": True}),
}
ALL = {**CASES, **METHODS}

UPDATES = 3

RUN = {
    "run.seed": 5, "model.width": 12, "model.blocks": 3, "model.heads": 2, "model.inner": 20, "model.context": 9,
    "moe.layers": 2, "moe.position": "scattered", "moe.experts": 5, "moe.sublayers": 1, "moe.inner": 14,
    "moe.capacity_factor": 1.1, "moe.identical_experts": "false", "train.updates": UPDATES,
    "train.batch_sequences": 12, "train.micro_batches": 2, "train.lanes": 3, "train.evaluate_every": 2,
    "train.evaluate_sequences": 8, "train.checkpoint_every": 1, "train.keep_last": 0, "optimizer.lr": 0.02,
    "optimizer.epsilon": 1e-3, "optimizer.decay": 0.1, "optimizer.clip": 0.5, "schedule.warmup": 2,
    "schedule.kind": "inverse_sqrt", "log.load_every": 1, "log.probe_every": 1, "log.probe_sequences": 5,
    "log.tokens_every": 1,
}

RUNS = {
    "stable": {"router.method": "stable", "router.stage1_updates": 2, "router.stable.distill_weight": 0.6,
               "router.stable.width": 6},
    # The second update ends with an evaluation in stage 1, by the distilled choice.
    "stable-bias": {"router.method": "stable", "router.stage1_updates": 2, "router.stable.bias_rate": 0.015625,
                    "router.stable.gate_start": 0.9, "router.stable.balance_weight": 0, "router.stable.width": 6},
    "stable-stage-1": {"router.method": "stable", "router.stage1_updates": 3, "router.stable.width": 6},
    "stable-cnn": {"router.method": "stable", "router.stage1_updates": 2, "router.stable.features": "cnn",
                   "router.stable.width": 6, "moe.identical_experts": "true", "schedule.kind": "linear"},
    "stable-transformer": {"router.method": "stable", "router.stage1_updates": 2, "router.stable.width": 6,
                           "router.stable.features": "transformer", "model.scale_embedding": "false"},
    "switch": {"router.method": "switch", "router.switch.balance_weight": 0.5, "router.switch.jitter": 0.2,
               "router.switch.init": "normal"},
    "gshard": {"router.method": "gshard", "router.gshard.balance_weight": 0.5, "optimizer.expert_gradient_factor": 3},
    "topk": {"router.method": "topk", "router.topk.k": 3, "router.topk.balance_weight": 0.5},
    "topk-raw": {"router.method": "topk", "router.topk.normalise": "false", "router.topk.balance_weight": 0.5},
    "topk-sigmoid": {"router.method": "topk", "router.topk.scores": "sigmoid", "router.topk.bias_rate": 0.015625,
                     "router.topk.balance_over": "sequence", "router.topk.balance_weight": 0.3,
                     "router.topk.z_loss_weight": 0.02},
    "recurrent": {"router.method": "recurrent", "router.recurrent.width": 6, "moe.layers": 3,
                  "router.recurrent.balance_weight": 0.5, "optimizer.router_lr_factor": 0.7},
    "sparsemixer": {"router.method": "sparsemixer", "router.sparsemixer.k": 2, "router.sparsemixer.epsilon": 0.6,
                    "router.sparsemixer.balance_weight": 0.5},
    "expert-choice": {"router.method": "expert_choice", "router.expert_choice.capacity": 1.5,
                      "router.expert_choice.max_experts": 3, "moe.capacity_factor": 0.4, "run.seed": 2},
    "expert-choice-experts": {"router.method": "expert_choice", "router.expert_choice.capacity": 1.2,
                              "router.expert_choice.evaluation": "experts", "moe.capacity_factor": 0,
                              "run.seed": 2},
    "base": {"router.method": "base", "moe.capacity_factor": 0.9, "run.seed": 6},
    "base-stage-2": {"router.method": "base_stage2", "router.stage1_updates": 2, "moe.capacity_factor": 0.9,
                     "run.seed": 1, "router.base_stage2.features": "bigram", "router.base_stage2.width": 6},
    "hash-balanced": {"router.method": "hash", "router.hash.variant": "balanced"},
    # Gates that begin at zero; evaluations and probes with sequences of padding alone.
    "gates": {"moe.layers": 0, "model.blocks": 4, "model.skip.what": "attention", "model.skip.layers": 3,
              "model.skip.target": 0.2, "model.skip.weight": 3, "optimizer.clip": 0, "optimizer.lr": 0.1},
    "gates-token": {"moe.layers": 0, "model.blocks": 4, "model.skip.what": "block", "model.skip.unit": "token",
                    "model.skip.gradient": "active", "model.skip.target": 0.2, "model.skip.weight": 3,
                    "optimizer.clip": 0, "optimizer.lr": 0.1},
    "gates-topk": {"router.method": "topk", "router.topk.k": 2, "router.topk.balance_weight": 0.5,
                   "model.skip.what": "ffn", "model.skip.mean": "whole", "model.skip.layers": 2, "model.skip.target": 0.2,
                   "model.skip.weight": 3, "optimizer.clip": 0, "optimizer.lr": 0.1},
    "mask": {"router.method": "mask", "router.mask.frequent_visible": 3, "router.mask.balance_weight": 0.5},
    "mask-count": {"router.method": "mask", "router.mask.draw": "balanced", "router.mask.frequent_count": 30,
                   "router.mask.rare_visible": 2, "router.mask.frequent_visible": 9, "router.mask.k": 3,
                   "router.mask.normalise": "true"},
    "thor": {"router.method": "thor", "router.thor.draw": "sequence", "router.thor.distinct": "true",
             "router.thor.consistency": 2},
    "smile": {"router.method": "smile", "moe.experts": 6, "moe.nodes": 3, "router.smile.balance_weight": 0.5,
              "router.smile.places": "per_node"},
    "local": {"router.method": "local", "moe.experts": 6, "moe.nodes": 3, "router.local.locality_weight": 0.5},
    "thor-token": {"router.method": "thor", "router.thor.draw": "token", "router.thor.evaluation_draw": "token",
                   "moe.capacity_factor": 0.9},
    "thor-mean": {"router.method": "thor", "router.thor.evaluation": "mean", "moe.capacity_factor": 0},
    "hash-segments": {"router.method": "hash", "moe.experts": 6, "router.hash.segments": 3},
    "hash-gate": {"router.method": "hash", "router.hash.gate": "sigmoid", "optimizer.router_lr_factor": 2.5},
    "hash-bigram": {"router.method": "hash", "router.hash.variant": "bigram"},
    "hash-position": {"router.method": "hash", "router.hash.variant": "position"},
    "dense": {"moe.layers": 0, "model.scale_embedding": "false"},
}

if __name__ == "__main__":
    print("\n".join({"plain": CASES, "methods": METHODS, "runs": RUNS}[sys.argv[1]]))
