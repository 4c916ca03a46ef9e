#include "config_table.h"

#include <math.h>
#include <string.h>

#include "stablemoe/arena.h"

/* The path of a value in smoe_settings is the name of its key, so one cannot be given without the
 * other. Behind the help may stand true: adjustable. */
#define INT(path, def, min, max, unit, ...)                                                                  \
  { #path, SMOE_KEY_INT, offsetof(smoe_settings, path), def, min, max, NULL, unit, __VA_ARGS__ }
#define REAL(path, def, min, max, unit, ...)                                                                 \
  { #path, SMOE_KEY_REAL, offsetof(smoe_settings, path), def, min, max, NULL, unit, __VA_ARGS__ }
#define BOOL(path, def, ...)                                                                                 \
  { #path, SMOE_KEY_BOOL, offsetof(smoe_settings, path), def, 0, 0, NULL, "", __VA_ARGS__ }
#define TEXT(path, def, ...)                                                                                 \
  { #path, SMOE_KEY_TEXT, offsetof(smoe_settings, path), def, 0, 0, NULL, "", __VA_ARGS__ }
#define PATH(path, def, ...)                                                                                 \
  { #path, SMOE_KEY_PATH, offsetof(smoe_settings, path), def, 0, 0, NULL, "", __VA_ARGS__ }
#define LIST(path, ...)                                                                                      \
  { #path, SMOE_KEY_LIST, offsetof(smoe_settings, path), "", 0, 0, NULL, "", __VA_ARGS__ }
#define CHOICE(path, def, choices, ...)                                                                      \
  { #path, SMOE_KEY_CHOICE, offsetof(smoe_settings, path), def, 0, 0, choices, "", __VA_ARGS__ }

/* In the order of the enums in config.h. */
static const char *const products[] = {"auto", "openblas", "onednn", NULL};
static const char *const precisions[] = {"fp32", "bf16", NULL};
static const char *const positions[] = {"middle", "top", "bottom", "scattered", NULL};
static const char *const froms[] = {"none", "ffn", NULL};
static const char *const exchanges[] = {"direct", "two_level", NULL};
static const char *const reductions[] = {"direct", "two_level", NULL};
static const char *const shares[] = {"node", "rank", NULL};
static const char *const alltoallvs[] = {"auto", "linear", "pairwise", NULL};
static const char *const patience_metrics[] = {"loss", "bleu", NULL};
static const char *const save_errors[] = {"stop", "continue", NULL};
static const char *const saves[] = {"wait", "background", NULL};
static const char *const placements[] = {"load", "order", NULL};
static const char *const optimizers[] = {"adam", "sgd", NULL};
static const char *const schedules[] = {"linear", "inverse_sqrt", "constant", "cosine", "wsd", NULL};

enum { MANY = 1000000000 }; /* an update's number enters the random streams as 32 bits */

static const smoe_key keys[] = {
    PATH(run.directory, "runs/default",
         "Directory of the run: configuration, log, metrics, checkpoints and routing logs go there."),
    INT(run.seed, "1", 0, INFINITY, "",
        "Seed of every random number (initial values, order of the data, noise): the same seed repeats the "
        "run."),
    INT(run.threads, "0", 0, 1024, "threads",
        "Threads of each rank; 0: OMP_NUM_THREADS, or 1 if it is not set.", true),
    CHOICE(run.products, "auto", products,
           "Library of single-precision GEMM; auto: oneDNN if the build has it and the CPU has AVX-512, else "
           "OpenBLAS. The two differ in rounding.",
           true),
    INT(run.log_every, "10", 1, MANY, "updates", "Updates between two lines of progress in the log."),
    REAL(run.max_minutes, "0", 0, INFINITY, "minutes",
         "Time after which the run saves a checkpoint and ends with exit code 75, to be resumed; 0: no "
         "limit."),

    PATH(data.corpus, "",
         "Corpus file to train and evaluate on, as `stablemoe prepare` makes it; training needs one."),
    INT(data.train_images, "0", 0, MANY, "images",
        "Images: train on the first so many training images; 0: on all."),

    TEXT(model.family, "stablemoe", "Family of the model: which layers it is a list of; --help lists them."),
    INT(model.width, "256", 1, 65536, "",
        "Width of the hidden states: numbers that stand for one token between the layers."),
    INT(model.blocks, "6", 1, 1000, "", "Transformer blocks, each one attention and one feed-forward layer."),
    INT(model.heads, "8", 1, 1024, "", "Attention heads of each block; must divide model.width."),
    INT(model.inner, "0", 0, 1048576, "",
        "Inner width of the blocks' feed-forward layers; 0: four times model.width."),
    INT(model.context, "256", 1, 65536, "tokens",
        "Length of a sequence: a token sees at most this many tokens, itself included."),
    BOOL(model.scale_embedding, "true", "Multiply token embeddings by the square root of model.width."),

    INT(moe.layers, "1", 0, 1000, "",
        "Mixture-of-experts layers between the blocks; 0: a dense model without experts."),
    CHOICE(moe.position, "middle", positions,
           "Where MoE layers stand: one after half of the blocks, after the last block (top), before the "
           "first block (bottom), or moe.layers of them spread evenly (scattered)."),
    INT(moe.experts, "8", 1, 65536, "",
        "Experts of each MoE layer; the ranks share them out, and a token visits only those it is sent to."),
    INT(moe.sublayers, "2", 1, 32, "",
        "Feed-forward sublayers stacked in an expert; more of them make each expert deeper."),
    INT(moe.inner, "0", 0, 1048576, "",
        "Inner width of the experts' feed-forward sublayers; 0: four times model.width."),
    REAL(moe.capacity_factor, "0", 0, INFINITY, "",
         "Tokens that an expert takes at most, in units of an even share; those beyond pass the layer "
         "unchanged; 0: no limit.",
         true),
    CHOICE(moe.from, "none", froms,
           "Make the experts in place of a block's feed-forward layer from that layer of train.initial: "
           "copies of it, "
           "or, with a moe.inner that divides its inner width, slices of it."),
    REAL(moe.from_noise, "0", 0, 10, "",
         "Noise on copied experts: its standard deviation as a share of the copied weights' root mean "
         "square."),
    REAL(moe.from_redrawn, "0", 0, 1, "",
         "Share of the inner units of each copied expert that is drawn anew, with mean and deviation of the "
         "copied "
         "weights."),
    REAL(moe.skip_below, "0", 0, 1, "",
         "Tokens skip those of their experts whose gate is below this; 0: none.", true),
    BOOL(moe.identical_experts, "true",
         "Start all experts of a layer from the same values, so that only the tokens make them differ."),
    INT(moe.nodes, "1", 1, 65536, "nodes",
        "Nodes that experts and lanes are counted in, in equal parts of their order: methods of two levels "
        "(smile, local) route by them, and from 2 on metrics.csv has the share of rows that stay on their "
        "node. Results do not depend on where ranks run."),

    TEXT(router.method, "stable",
         "Method that chooses the experts of a token; `stablemoe train --help` lists all, doc/methods.md and "
         "doc/methods/ have their equations."),
    INT(router.stage1_updates, "-1", -1, MANY, "updates",
        "Updates of stage 1, which learns the routing; stage 2 then freezes it (methods with two stages "
        "only); -1: a tenth of train.updates."),

    PATH(train.initial, "",
         "Run directory or checkpoint whose parameters a new run begins with, by name; what that does not "
         "have "
         "is drawn as ever."),
    LIST(train.initial_ignore,
         "Parameters of train.initial to leave out: patterns of their names, in which * stands for any text, "
         "as in [\"moe*/router/*\"]."),
    LIST(train.frozen, "Parameters that keep their initial values, without gradients and moments: patterns "
                       "of names, in which * "
                       "stands for any text, as in [\"embedding/*\", \"block0/*\"]."),
    LIST(train.only, "Patterns of the only parameters that learn; [] for all."),
    INT(train.updates, "1000", 1, MANY, "updates", "Length of the training: steps of the optimizer."),
    INT(train.batch_sequences, "32", 1, 16777216, "sequences",
        "Sequences of each update over all ranks; a multiple of train.lanes times train.micro_batches."),
    INT(train.batch_tokens, "8192", 1, INFINITY, "tokens",
        "Translation: rows of an update on the source and on the target side, padding included; pairs of "
        "like "
        "length are put together until they fill them. Other tasks count train.batch_sequences."),
    INT(train.micro_batches, "1", 1, 1048576, "",
        "Parts in which an update's batch is computed, one after the other; more parts need less memory."),
    INT(train.lanes, "8", 1, 65536, "",
        "Parallel parts of each micro-batch, and so the most ranks that can share it; results depend on the "
        "lanes, not on the ranks."),
    CHOICE(
        train.precision, "fp32", precisions,
        "Precision of what matrix products read: in bf16 weights, activations and gradients are rounded for "
        "them, and rows travel to experts so; sums, parameters and moments stay fp32. Faster on CPUs with "
        "bf16 instructions (`stablemoe --version` tells).",
        true),
    BOOL(train.recompute, "false",
         "Compute the blocks' activations again in the backward pass instead of keeping them: much less "
         "memory, "
         "up to a fifth more work, the same results."),
    INT(train.evaluate_every, "200", 0, MANY, "updates",
        "Updates between two evaluations on the validation split; 0: only at the end."),
    INT(train.evaluate_sequences, "0", 0, MANY, "sequences",
        "Validation sequences of each evaluation; 0: all of them."),
    INT(train.checkpoint_every, "200", 0, MANY, "updates",
        "Updates between two checkpoints, from which a run can resume; 0: only at the end."),
    CHOICE(train.save, "wait", saves,
           "wait: updates wait until a checkpoint is complete; background: they wait until it is copied in "
           "memory, and a thread of each rank writes it. The same files; the copy takes a checkpoint's size, "
           "shared out over the ranks."),
    INT(train.keep_last, "3", 0, MANY, "checkpoints", "Newest checkpoints to keep; 0: keep all."),
    INT(train.keep_every, "0", 0, MANY, "updates",
        "Keep checkpoints at multiples of this many updates for good; 0: none."),
    INT(train.patience, "0", 0, MANY, "evaluations",
        "End the training when so many evaluations in a row have not improved on the best one; "
        "those of stage 1 do not count where a stage 2 follows; 0: go through all updates."),
    CHOICE(train.patience_metric, "loss", patience_metrics,
           "What an evaluation is judged by: the validation loss; or, of translation, BLEU of greedy "
           "translations of train.patience_pairs validation pairs, the column valid_bleu of metrics.csv."),
    INT(train.patience_pairs, "256", 0, MANY, "pairs",
        "Validation pairs that are translated for BLEU, spread over the split; 0: all."),
    BOOL(train.best, "false",
         "Keep the checkpoint of the best evaluation, with one saved at each that improves; train.patience "
         "does so too."),
    CHOICE(
        train.on_save_error, "stop", save_errors,
        "Where a checkpoint cannot be saved (disk full): end the run, or continue and try again at the next "
        "one; the checkpoints before stay either way."),

    CHOICE(optimizer.method, "adam", optimizers,
           "adam: AdamW; sgd: the gradient times the learning rate, without momentum."),
    REAL(optimizer.lr, "6e-4", 0, 1, "", "Peak learning rate, reached after schedule.warmup updates."),
    REAL(optimizer.beta1, "0.9", 0, 0.9999999, "", "Adam's decay of the mean of gradients."),
    REAL(optimizer.beta2, "0.98", 0, 0.9999999, "", "Adam's decay of the mean of squared gradients."),
    REAL(optimizer.epsilon, "1e-8", 1e-30, 1, "",
         "Adam's addition to the denominator; keeps steps finite where gradients vanish."),
    REAL(optimizer.decay, "0", 0, 1, "",
         "Weight decay, apart from the gradient as in AdamW and scaled by the learning rate; 0: none."),
    REAL(optimizer.clip, "0.1", 0, INFINITY, "",
         "Norm to which the gradient of all parameters together is cut down where it is longer; 0: never."),
    REAL(optimizer.expert_gradient_factor, "1", 0, INFINITY, "",
         "Factor on the experts' gradients before clipping: 1 is the true gradient; the code of the "
         "StableMoE paper multiplies them by its number of ranks, which is moe.experts there."),
    REAL(optimizer.router_lr_factor, "1", 0, INFINITY, "",
         "Factor on the learning rate for the parameters of routers (moe<m>/router/...), whatever the "
         "method."),

    CHOICE(schedule.kind, "linear", schedules,
           "Learning rate after the warm-up: linear falls to 0 at train.updates, inverse_sqrt falls with the "
           "inverse square root of the update, cosine falls to schedule.floor, wsd (warm-up, stable, decay) "
           "stays constant and then falls linearly to schedule.floor."),
    INT(schedule.warmup, "100", 0, MANY, "updates",
        "Updates in which the learning rate rises linearly to optimizer.lr; at most train.updates."),
    REAL(schedule.floor, "0.1", 0, 1, "", "Share of optimizer.lr at which cosine and wsd end."),
    REAL(schedule.decay_share, "0.1", 0, 1, "",
         "Share of train.updates, the last ones, in which the learning rate of wsd falls."),

    INT(comm.expert_ranks, "0", 0, 65536, "ranks",
        "Ranks that share out the experts; more ranks form replicas of such groups, which share out the "
        "data; "
        "0: as many as possible (the largest divisor of the ranks that is at most moe.experts).",
        true),
    CHOICE(
        comm.exchange, "direct", exchanges,
        "How tokens travel to their experts: from rank to rank, or within a node, then in one message from "
        "node to node, and within a node again. Results are the same.",
        true),
    CHOICE(comm.share, "node", shares,
           "Who has a copy of the parameters that are not in experts: the ranks of a node one together, in "
           "shared memory, or every rank. Where a node lacks shared memory (/dev/shm), every rank has one. "
           "Results are the same.",
           true),
    CHOICE(
        comm.reduction, "direct", reductions,
        "How gradients are summed: from rank to rank; or within a node, where gradients then are in shared "
        "memory (/dev/shm), and then in one message from node to node for each rank's part. Results are the "
        "same.",
        true),
    INT(comm.node_ranks, "0", 0, 65536, "ranks",
        "Consecutive ranks that are taken for a node by comm.exchange and comm.reduction two_level and by "
        "comm.share node; 0: those that share memory.",
        true),
    CHOICE(comm.alltoallv, "auto", alltoallvs,
           "Order of the direct exchange's messages: MPI_Alltoallv, which chooses by itself, all at once, or "
           "in rounds of one partner each. Results are the same.",
           true),
    INT(comm.overlap, "0", 0, 64, "groups",
        "Groups of experts that travel and compute side by side; 1: only gradients travel while others are "
        "computed; 0: nothing does. Results are the same.",
        true),
    REAL(comm.slice_mib, "1024", 0.000001, 2047, "MiB",
         "Longest message of the token exchange; a longer one goes in slices.", true),
    CHOICE(
        comm.placement, "load", placements,
        "Which experts share a rank once the routing is fixed: packed so that all ranks have as many rows, "
        "by the loads of the coming batches, or in order of their numbers. Results are the same."),
    REAL(comm.watchdog_s, "300", 0, INFINITY, "s",
         "Wait in a collective after which a rank says where, at which update and for whom it waits; 0: "
         "never.",
         true),
    BOOL(comm.watchdog_end, "false", "End the run (exit code 7) when the watchdog has spoken.", true),

    INT(log.load_every, "10", 0, MANY, "updates",
        "Updates between two records of how many tokens each expert got; 0: none."),
    INT(log.probe_every, "-1", -1, MANY, "updates",
        "Updates between two records of the experts chosen for a fixed set of validation tokens; 0: none; "
        "-1: a hundred and twentieth of train.updates, at least 1."),
    INT(log.probe_sequences, "8", 0, 65536, "sequences",
        "Validation sequences, or pairs of translation, in that fixed set; 0: no such records."),
    INT(log.tokens_every, "0", 0, MANY, "updates",
        "Updates between two full records, expert and gate of every token of the batch (large); 0: none."),
};

const smoe_keyset smoe_settings_keys = {keys, sizeof keys / sizeof *keys, sizeof(smoe_settings)};

static const struct {
  const char *section, *title;
} titles[] = {
    {"run", "The run itself."},
    {"data", "The text to learn from."},
    {"model", "The backbone: a Transformer that predicts the next token."},
    {"moe", "Mixture-of-experts (MoE) layers between the backbone's blocks."},
    {"router", "Routing: which expert a token is sent to."},
    {"train", "Length, batch, evaluation and checkpoints of the training."},
    {"optimizer", "Adam, which turns gradients into steps."},
    {"schedule", "The learning rate over the training."},
    {"comm", "How the ranks work together."},
    {"log", "The routing log: HDF5 files that say where tokens went."},
};

char *smoe_config_section_title(const char *section, size_t length) {
  for (size_t i = 0; i < sizeof titles / sizeof *titles; i++)
    if (strlen(titles[i].section) == length && strncmp(titles[i].section, section, length) == 0)
      return smoe_strdup(titles[i].title);
  if (length > 7 && strncmp(section, "router.", 7) == 0)
    return smoe_sprintf("Used where router.method is %.*s.", (int)length - 7, section + 7);
  return smoe_strdup("");
}
