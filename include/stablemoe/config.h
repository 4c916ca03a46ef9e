/** The configuration: one table of keys, from which everything follows.
 *
 *  A key has a dotted name ("optimizer.clip"), a type, a default, a range, a
 *  unit and a sentence of help. The YAML file, `-P section.key=value`, --help,
 *  configs/reference.yml, used.yml and the checkpoint's configuration text
 *  all come from the table. A routing method brings a key set of its own.
 */
#ifndef STABLEMOE_CONFIG_H
#define STABLEMOE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "stablemoe/json.h"
#include "stablemoe/status.h"

typedef enum smoe_key_kind {
  SMOE_KEY_INT,    /**< int64_t */
  SMOE_KEY_REAL,   /**< double */
  SMOE_KEY_BOOL,   /**< bool; true or false */
  SMOE_KEY_TEXT,   /**< char[SMOE_TEXT_MAX] */
  SMOE_KEY_PATH,   /**< the same, of a file or directory: ~ and $VARIABLE are expanded, $$ is a dollar sign */
  SMOE_KEY_CHOICE, /**< int: index into choices */
  SMOE_KEY_LIST    /**< char[SMOE_TEXT_MAX]: texts with a comma after each but the last */
} smoe_key_kind;

enum { SMOE_TEXT_MAX = 1024 };

typedef struct smoe_key {
  const char *name; /**< "train.updates", "router.stable.width" */
  smoe_key_kind kind;
  size_t offset;              /**< of the value in the key set's struct */
  const char *def;            /**< default, as it would be written in the file */
  double min, max;            /**< range of numbers, both inclusive */
  const char *const *choices; /**< NULL-terminated, for CHOICE */
  const char *unit;           /**< "tokens", "s", "" */
  const char *help;           /**< one sentence */
  bool adjustable; /**< of a trained model too: changes neither which parameters it has nor what they mean */
} smoe_key;

/** The keys that fill one struct. */
typedef struct smoe_keyset {
  const smoe_key *keys;
  size_t n_keys;
  size_t struct_bytes;
} smoe_keyset;

/** Places of MoE layers. */
typedef enum smoe_position { SMOE_MIDDLE, SMOE_TOP, SMOE_BOTTOM, SMOE_SCATTERED } smoe_position;
/** Where experts come from, beside their initial distribution. */
typedef enum smoe_moe_from { SMOE_FROM_NOTHING, SMOE_FROM_FFN } smoe_moe_from;
typedef enum smoe_patience_metric { SMOE_PATIENCE_LOSS, SMOE_PATIENCE_BLEU } smoe_patience_metric;
typedef enum smoe_save_kind { SMOE_SAVE_WAIT, SMOE_SAVE_BACKGROUND } smoe_save_kind;
typedef enum smoe_on_save_error { SMOE_SAVE_STOP, SMOE_SAVE_CONTINUE } smoe_on_save_error;
typedef enum smoe_placement_kind { SMOE_PLACE_BY_LOAD, SMOE_PLACE_IN_ORDER } smoe_placement_kind;
/** Who has a copy of the values of replicated parameters. */
typedef enum smoe_share_kind { SMOE_SHARE_NODE, SMOE_SHARE_RANK } smoe_share_kind;
typedef enum smoe_reduction_kind { SMOE_REDUCTION_DIRECT, SMOE_REDUCTION_TWO_LEVEL } smoe_reduction_kind;
typedef enum smoe_optimizer_kind { SMOE_ADAM, SMOE_SGD } smoe_optimizer_kind;

typedef enum smoe_schedule_kind {
  SMOE_LINEAR,
  SMOE_INVERSE_SQRT,
  SMOE_CONSTANT,
  SMOE_COSINE,
  SMOE_WSD
} smoe_schedule_kind;

/** Values of the trainer's own keys (src/config/keys.c has the table). */
typedef struct smoe_settings {
  struct {
    char directory[SMOE_TEXT_MAX];
    int64_t seed;
    int64_t threads; /**< per rank; 0: OMP_NUM_THREADS, else 1 */
    int products;    /**< smoe_products_kind (products.h) */
    int64_t log_every;
    double max_minutes; /**< 0: no limit */
  } run;
  struct {
    char corpus[SMOE_TEXT_MAX];
    int64_t train_images;
  } data;
  struct {
    char family[SMOE_TEXT_MAX];
    int64_t width;   /**< C */
    int64_t blocks;  /**< L */
    int64_t heads;   /**< H */
    int64_t inner;   /**< F; 0: 4 C */
    int64_t context; /**< T */
    bool scale_embedding;
  } model;
  struct {
    int64_t layers;         /**< M; 0: a dense model */
    int position;           /**< smoe_position */
    int64_t experts;        /**< E */
    int64_t sublayers;      /**< FFN sublayers per expert */
    int64_t inner;          /**< F of experts; 0: 4 C */
    double capacity_factor; /**< 0: dropless */
    int from;               /**< smoe_moe_from */
    double from_noise;      /**< share of the weights' RMS */
    double from_redrawn;    /**< share of inner units */
    double skip_below;      /**< slots with smaller gates are not computed; 0: all are */
    bool identical_experts;
    int64_t nodes; /**< virtual nodes of lanes and experts */
  } moe;
  struct {
    char method[SMOE_TEXT_MAX];
    int64_t stage1_updates; /**< -1: a tenth of train.updates */
  } router;
  struct {
    char initial[SMOE_TEXT_MAX];        /**< run or checkpoint; "": values are drawn */
    char initial_ignore[SMOE_TEXT_MAX]; /**< list of globs: names of that file to leave out */
    char frozen[SMOE_TEXT_MAX];         /**< list of globs: parameters that keep their values */
    char only[SMOE_TEXT_MAX];           /**< list of globs: all others keep theirs; "": none do */
    int64_t updates;
    int64_t batch_sequences; /**< per update, over all ranks */
    int64_t batch_tokens;    /**< per update on either side, padding included; translation */
    int64_t micro_batches;
    int64_t lanes;
    int precision;              /**< smoe_precision (operand.h) */
    bool recompute;             /**< activations of blocks again in the backward pass */
    int64_t evaluate_every;     /**< updates; 0: only at the end */
    int64_t evaluate_sequences; /**< 0: the whole validation split */
    int64_t checkpoint_every;   /**< updates; 0: only at the end */
    int save;                   /**< smoe_save_kind */
    int64_t keep_last;          /**< checkpoints; 0: all */
    int64_t keep_every;         /**< updates between checkpoints kept for good; 0: none */
    int64_t patience;           /**< evaluations; 0: none ends the training */
    int patience_metric;        /**< smoe_patience_metric */
    int64_t patience_pairs;     /**< validation pairs that BLEU is of; 0: all */
    bool best;                  /**< keep the best checkpoint; train.patience does so too */
    int on_save_error;          /**< smoe_on_save_error */
  } train;
  struct {
    int method; /**< smoe_optimizer_kind */
    double lr, beta1, beta2, epsilon, decay, clip;
    double expert_gradient_factor;
    double router_lr_factor;
  } optimizer;
  struct {
    int kind; /**< smoe_schedule_kind */
    int64_t warmup;
    double floor;       /**< of cosine and wsd; a share of optimizer.lr */
    double decay_share; /**< of wsd; a share of train.updates */
  } schedule;
  struct {
    int64_t expert_ranks; /**< G; 0: automatic */
    int exchange;         /**< smoe_exchange_kind (exchange.h) */
    int share;            /**< smoe_share_kind */
    int reduction;        /**< smoe_reduction_kind */
    int64_t node_ranks;   /**< 0: as the machines are */
    int alltoallv;        /**< smoe_alltoallv */
    int64_t overlap;      /**< groups of experts; 0: off */
    double slice_mib;
    int placement;     /**< smoe_placement_kind */
    double watchdog_s; /**< 0: never */
    bool watchdog_end;
  } comm;
  struct {
    int64_t load_every;      /**< updates between rows of /load; 0: none */
    int64_t probe_every;     /**< -1: train.updates / 120, at least 1; 0: none */
    int64_t probe_sequences; /**< validation sequences in the probe */
    int64_t tokens_every;    /**< updates between full assignment records; 0: none */
  } log;
} smoe_settings;

extern const smoe_keyset smoe_settings_keys;

typedef struct smoe_config smoe_config;

/** A configuration with every key at its default.
 *
 *  Local.
 *  sets  in  [n_sets] key sets; the first one must be smoe_settings_keys; borrowed
 */
smoe_config *smoe_config_create(const smoe_keyset *const *sets, size_t n_sets);

/** Give it back. Local. */
void smoe_config_destroy(smoe_config *config);

/** Read a YAML file over the present values. Local.
 *
 *  Sections nest: "router.stable.width" is width in stable in router, and may be written
 *  in one line too. An empty file changes nothing.
 *
 *  Errors:  SMOE_ERR_IO where it cannot be read; SMOE_ERR_CONFIG with file and
 *           line for bad syntax, a key twice, an unknown key (with the nearest
 *           known one), a value of the wrong type or out of range.
 */
smoe_status smoe_config_load(smoe_config *config, const char *path);

/** Read YAML text over the present values; origin names it in messages. Local. */
smoe_status smoe_config_parse(smoe_config *config, const char *text, const char *origin);

/** Set one key from "section.key=value". Local. Errors: as smoe_config_load. */
smoe_status smoe_config_override(smoe_config *config, const char *assignment);

/** smoe_config_override on the configuration of a trained model: of those keys alone that are adjustable.
 *
 *  Local. Errors: as smoe_config_override; SMOE_ERR_CONFIG naming the keys that can be set where it is another one.
 */
smoe_status smoe_config_adjust(smoe_config *config, const char *assignment);

/** Check what involves several keys (heads divide width, lanes divide the batch, ...),
 *  and resolve the defaults that follow from others (inner, stage1_updates, probe_every). Local.
 *
 *  Resolving twice does what once does, so the text of a resolved configuration repeats the run.
 *  Errors:  SMOE_ERR_CONFIG naming the keys and, where there is one, a value that fits.
 */
smoe_status smoe_config_resolve(smoe_config *config);

/** The trainer's own values. Local. */
const smoe_settings *smoe_config_settings(const smoe_config *config);

/** The values of a key set, as its struct. Local. */
const void *smoe_config_options(const smoe_config *config, const smoe_keyset *set);

/** The whole configuration as YAML, every key, in memory of smoe_alloc. Local.
 *
 *  commented: with help, unit and range above every key, as in configs/reference.yml.
 *  Reading the text gives the same values, bit for bit.
 */
char *smoe_config_text(const smoe_config *config, bool commented);

/** The whole configuration as one JSON object of dotted names; key: as in json.h. Local. */
void smoe_config_json(const smoe_config *config, smoe_json *json, const char *key);

/** What is different from a configuration text, a line each: "train.updates: 100 -> 200".
 *
 *  Local.
 *  changes  out  in memory of smoe_alloc; "" where nothing is
 *  Errors:  as smoe_config_parse, for the text.
 */
smoe_status smoe_config_changes(const smoe_config *config, const char *text, const char *origin,
                                char **changes);

/** Read the configuration text that a checkpoint stores. Local.
 *
 *  like    in   a configuration of the same key sets
 *  stored  out  resolved; to be destroyed by the caller; NULL where reading fails
 *  Errors:  as smoe_config_parse.
 */
smoe_status smoe_config_stored(const smoe_config *like, const char *text, const char *origin,
                               smoe_config **stored);

/** Take the stored values of all keys that nobody set here and that smoe_config_resolve computed from other
 *  keys: a longer training must not move router.stage1_updates. Local.
 *
 *  stored  in  of smoe_config_stored
 */
void smoe_config_keep_derived(smoe_config *config, const smoe_config *stored);

/** Print every key with default, range and help. Local. */
void smoe_config_help(const smoe_config *config, FILE *out);

/** Copy the next text of a list (SMOE_KEY_LIST) to item, and return the list behind it. Local. */
const char *smoe_config_next(const char *list, char item[SMOE_TEXT_MAX]);

#endif
