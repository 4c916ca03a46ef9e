#include "layouts.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/json.h"
#include "stablemoe/log.h"

const char *const smoe_layout_names[] = {"stablemoe", "gpt2", "llama", NULL};

/* Both programs' and this one's norms add this to the variance. */
static const double NORM_EPSILON = 1e-5;

enum { DIGITS = 9 };

/* ---- names ---- */

typedef struct name_pair {
  const char *own, *other;
  bool transposed;
} name_pair;

static const name_pair gpt2_model[] = {{"embedding/table", "transformer.wte.weight", false},
                                       {"embedding/position", "transformer.wpe.weight", false},
                                       {"norm/gamma", "transformer.ln_f.weight", false},
                                       {"norm/beta", "transformer.ln_f.bias", false},
                                       {"head/weight", "lm_head.weight", false},
                                       {0}};
static const name_pair gpt2_block[] = {{"attention/norm/gamma", "ln_1.weight", false},
                                       {"attention/norm/beta", "ln_1.bias", false},
                                       {"attention/qkv/weight", "attn.c_attn.weight", true},
                                       {"attention/qkv/bias", "attn.c_attn.bias", false},
                                       {"attention/proj/weight", "attn.c_proj.weight", true},
                                       {"attention/proj/bias", "attn.c_proj.bias", false},
                                       {"ffn/norm/gamma", "ln_2.weight", false},
                                       {"ffn/norm/beta", "ln_2.bias", false},
                                       {"ffn/w1", "mlp.c_fc.weight", true},
                                       {"ffn/b1", "mlp.c_fc.bias", false},
                                       {"ffn/w2", "mlp.c_proj.weight", true},
                                       {"ffn/b2", "mlp.c_proj.bias", false},
                                       {0}};
static const name_pair llama_model[] = {{"embedding/table", "model.embed_tokens.weight", false},
                                        {"norm/gamma", "model.norm.weight", false},
                                        {"head/weight", "lm_head.weight", false},
                                        {0}};
static const name_pair llama_block[] = {{"attention/norm/gamma", "input_layernorm.weight", false},
                                        {"attention/proj/weight", "self_attn.o_proj.weight", false},
                                        {"ffn/norm/gamma", "post_attention_layernorm.weight", false},
                                        {"ffn/w2", "mlp.down_proj.weight", false},
                                        {0}};

static const name_pair *find_pair(const name_pair *pair, const char *own) {
  while (pair->own && strcmp(pair->own, own) != 0) pair++;
  return pair->own ? pair : NULL;
}

static int one_part(smoe_layout_part *part, const char *prefix, const name_pair *pair, int64_t rows) {
  if (!pair) return 0;
  *part = (smoe_layout_part){.rows = rows, .transposed = pair->transposed};
  snprintf(part->tensor, sizeof part->tensor, "%s%s", prefix, pair->other);
  return 1;
}

/* Queries, keys and values, or the two halves of SwiGLU, which Llama keeps apart. */
static int split_parts(const smoe_layout_sizes *s, const char *prefix, const char *rest,
                       smoe_layout_part *part) {
  static const char *const qkv[] = {"self_attn.q_proj.weight", "self_attn.k_proj.weight",
                                    "self_attn.v_proj.weight"};
  static const char *const swiglu[] = {"mlp.gate_proj.weight", "mlp.up_proj.weight"};
  const bool attention = strcmp(rest, "attention/qkv/weight") == 0;
  if (!attention && strcmp(rest, "ffn/w1") != 0) return 0;
  const int64_t kv = s->width / s->heads * s->kv_heads;
  int64_t first = 0;
  const int n = attention ? 3 : 2;
  for (int i = 0; i < n; i++) {
    part[i] = (smoe_layout_part){.first = first, .rows = !attention ? s->inner : i == 0 ? s->width : kv};
    snprintf(part[i].tensor, sizeof part[i].tensor, "%s%s", prefix, attention ? qkv[i] : swiglu[i]);
    first += part[i].rows;
  }
  return n;
}

int smoe_layout_parts(smoe_layout layout, const smoe_layout_sizes *sizes, const char *param, int64_t rows,
                      smoe_layout_part part[SMOE_LAYOUT_PARTS]) {
  int block, used = 0;
  char prefix[64] = "";
  if (layout == SMOE_LAYOUT_OWN) {
    part[0] = (smoe_layout_part){.rows = rows};
    snprintf(part[0].tensor, sizeof part[0].tensor, "%s", param);
    return 1;
  }
  const bool gpt2 = layout == SMOE_LAYOUT_GPT2;
  if (sscanf(param, "block%d/%n", &block, &used) < 1 || used == 0)
    return one_part(part, prefix, find_pair(gpt2 ? gpt2_model : llama_model, param), rows);
  snprintf(prefix, sizeof prefix, gpt2 ? "transformer.h.%d." : "model.layers.%d.", block);
  const name_pair *pair = find_pair(gpt2 ? gpt2_block : llama_block, param + used);
  if (pair) return one_part(part, prefix, pair, rows);
  return gpt2 ? 0 : split_parts(sizes, prefix, param + used, part);
}

static bool ends_with(const char *text, const char *ending) {
  const size_t a = strlen(text), b = strlen(ending);
  return a >= b && strcmp(text + a - b, ending) == 0;
}

bool smoe_layout_is_constant(const char *tensor) {
  return ends_with(tensor, ".attn.bias") || ends_with(tensor, ".attn.masked_bias") ||
         ends_with(tensor, "rotary_emb.inv_freq");
}

/* ---- this program's configuration ---- */

/* The text of a key, in memory of smoe_alloc; NULL: there is no such key. */
static char *value_of(const smoe_config *config, const char *key) {
  smoe_json json;
  smoe_json_begin_text(&json, 0);
  smoe_config_json(config, &json, NULL);
  char *text = smoe_json_take(&json, NULL);
  json_t *all = json_loads(text, 0, NULL), *item = json_object_get(all, key);
  char *value = NULL;
  if (json_is_string(item))
    value = smoe_strdup(json_string_value(item));
  else if (json_is_boolean(item))
    value = smoe_strdup(json_is_true(item) ? "true" : "false");
  else if (json_is_integer(item))
    value = smoe_sprintf("%lld", (long long)json_integer_value(item));
  else if (json_is_real(item))
    value = smoe_sprintf("%.17g", json_real_value(item));
  json_decref(all);
  smoe_free(text);
  return value;
}

static int64_t int_of(const smoe_config *config, const char *key) {
  char *text = value_of(config, key);
  const int64_t value = text ? strtoll(text, NULL, 10) : 0;
  smoe_free(text);
  return value;
}

static bool is(const smoe_config *config, const char *key, const char *wanted) {
  char *text = value_of(config, key);
  const bool same = text && strcmp(text, wanted) == 0;
  smoe_free(text);
  return same;
}

smoe_layout_sizes smoe_layout_sizes_of(const smoe_config *config) {
  const smoe_settings *s = smoe_config_settings(config);
  const bool decoder = strcmp(s->model.family, "decoder") == 0;
  const int64_t kv = decoder ? int_of(config, "model.decoder.kv_heads") : 0;
  return (smoe_layout_sizes){s->model.width, s->model.heads, kv ? kv : s->model.heads, s->model.inner};
}

/* What a layout needs, a line each. */
typedef struct need {
  const char *key, *value;
} need;

static const need gpt2_needs[] = {
    {"model.decoder.norm", "layer"},      {"model.decoder.positions", "learned"},
    {"model.decoder.activation", "gelu"}, {"model.decoder.biases", "true"},
    {"model.decoder.kv_heads", "0"},      {0}};
static const need llama_needs[] = {{"model.decoder.norm", "rms"},
                                   {"model.decoder.positions", "rope"},
                                   {"model.decoder.activation", "swiglu"},
                                   {"model.decoder.biases", "false"},
                                   {0}};

smoe_status smoe_layout_check(smoe_layout layout, const smoe_config *config) {
  const smoe_settings *s = smoe_config_settings(config);
  if (layout == SMOE_LAYOUT_OWN) return SMOE_OK;
  const char *name = smoe_layout_names[layout];
  SMOE_CHECK(strcmp(s->model.family, "decoder") == 0 && s->moe.layers == 0, SMOE_ERR_CONFIG,
             "--layout %s: only dense models of model.family decoder have it", name);
  SMOE_CHECK(!s->model.scale_embedding, SMOE_ERR_CONFIG, "--layout %s: model.scale_embedding has to be false",
             name);
  SMOE_CHECK(is(config, "model.skip.what", "none"), SMOE_ERR_CONFIG,
             "--layout %s has no gates (model.skip.what)", name);
  for (const need *n = layout == SMOE_LAYOUT_GPT2 ? gpt2_needs : llama_needs; n->key; n++)
    SMOE_CHECK(is(config, n->key, n->value), SMOE_ERR_CONFIG, "--layout %s needs %s: %s", name, n->key,
               n->value);
  return SMOE_OK;
}

/* ---- config.json ---- */

static smoe_status set(smoe_config *config, const char *key, const char *value) {
  char *assignment = smoe_sprintf("%s=%s", key, value);
  const smoe_status status = smoe_config_override(config, assignment);
  smoe_free(assignment);
  return status;
}

static smoe_status set_int(smoe_config *config, const char *key, const json_t *from, const char *name,
                           int64_t otherwise) {
  const json_t *item = json_object_get(from, name);
  SMOE_CHECK(json_is_integer(item) || otherwise >= 0, SMOE_ERR_FORMAT, "config.json lacks the number '%s'",
             name);
  char *text = smoe_sprintf("%lld", json_is_integer(item) ? (long long)json_integer_value(item)
                                                          : (long long)otherwise);
  const smoe_status status = set(config, key, text);
  smoe_free(text);
  return status;
}

static bool is_true(const json_t *from, const char *name, bool otherwise) {
  const json_t *item = json_object_get(from, name);
  return json_is_boolean(item) ? json_is_true(item) : otherwise;
}

static smoe_status check_epsilon(const json_t *from, const char *name) {
  const json_t *item = json_object_get(from, name);
  const double epsilon = json_is_number(item) ? json_number_value(item) : NORM_EPSILON;
  if (epsilon != NORM_EPSILON)
    smoe_warn("config.json has %s %g, this program's norms have %g: losses differ a little", name, epsilon,
              NORM_EPSILON);
  return SMOE_OK;
}

static smoe_status set_common(smoe_config *config, const need *needs) {
  SMOE_TRY(set(config, "model.family", "decoder"));
  SMOE_TRY(set(config, "model.scale_embedding", "false"));
  SMOE_TRY(set(config, "moe.layers", "0"));
  SMOE_TRY(set(config, "moe.sublayers", "1"));
  for (; needs->key; needs++) SMOE_TRY(set(config, needs->key, needs->value));
  return SMOE_OK;
}

static smoe_status read_gpt2(smoe_config *config, const json_t *from) {
  const char *activation = json_string_value(json_object_get(from, "activation_function"));
  SMOE_TRY(set_common(config, gpt2_needs));
  SMOE_TRY(set_int(config, "model.width", from, "n_embd", -1));
  SMOE_TRY(set_int(config, "model.blocks", from, "n_layer", -1));
  SMOE_TRY(set_int(config, "model.heads", from, "n_head", -1));
  SMOE_TRY(set_int(config, "model.context", from, "n_positions", -1));
  SMOE_TRY(set_int(config, "model.inner", from, "n_inner", 0));
  SMOE_TRY(set(config, "model.decoder.tied", is_true(from, "tie_word_embeddings", true) ? "true" : "false"));
  SMOE_CHECK(!activation || strncmp(activation, "gelu", 4) == 0, SMOE_ERR_CONFIG,
             "config.json: activation_function '%s' is none of this program's for GPT-2", activation);
  if (!activation || strcmp(activation, "gelu") != 0)
    smoe_warn("config.json has the activation '%s', an approximation; this program computes GELU in its "
              "exact form: losses "
              "differ a little",
              activation ? activation : "gelu_new");
  return check_epsilon(from, "layer_norm_epsilon");
}

static smoe_status read_llama(smoe_config *config, const json_t *from) {
  const int64_t width = json_integer_value(json_object_get(from, "hidden_size"));
  const int64_t heads = json_integer_value(json_object_get(from, "num_attention_heads"));
  const json_t *head = json_object_get(from, "head_dim"), *base = json_object_get(from, "rope_theta");
  const char *activation = json_string_value(json_object_get(from, "hidden_act"));
  SMOE_TRY(set_common(config, llama_needs));
  SMOE_TRY(set_int(config, "model.width", from, "hidden_size", -1));
  SMOE_TRY(set_int(config, "model.blocks", from, "num_hidden_layers", -1));
  SMOE_TRY(set_int(config, "model.heads", from, "num_attention_heads", -1));
  SMOE_TRY(set_int(config, "model.decoder.kv_heads", from, "num_key_value_heads", 0));
  SMOE_TRY(set_int(config, "model.inner", from, "intermediate_size", -1));
  SMOE_TRY(set_int(config, "model.context", from, "max_position_embeddings", -1));
  SMOE_TRY(set(config, "model.decoder.tied", is_true(from, "tie_word_embeddings", false) ? "true" : "false"));
  char *text = smoe_sprintf("%.17g", json_is_number(base) ? json_number_value(base) : 10000.0);
  smoe_status status = set(config, "model.decoder.rope_base", text);
  smoe_free(text);
  SMOE_TRY(status);
  SMOE_CHECK(!json_is_integer(head) || (heads > 0 && json_integer_value(head) * heads == width),
             SMOE_ERR_CONFIG,
             "config.json: head_dim is not hidden_size / num_attention_heads, which is all that this program "
             "computes");
  SMOE_CHECK(!is_true(from, "attention_bias", false) && !is_true(from, "mlp_bias", false), SMOE_ERR_CONFIG,
             "config.json: attention_bias and mlp_bias are not read in the llama layout");
  SMOE_CHECK(!activation || strcmp(activation, "silu") == 0, SMOE_ERR_CONFIG,
             "config.json: hidden_act '%s' is not this program's SwiGLU, which is silu", activation);
  SMOE_CHECK(!json_is_object(json_object_get(from, "rope_scaling")), SMOE_ERR_CONFIG,
             "config.json: rope_scaling is not computed by this program");
  return check_epsilon(from, "rms_norm_eps");
}

smoe_status smoe_layout_read_config(smoe_config *config, const char *path, smoe_layout *layout) {
  json_error_t error;
  json_t *from = json_load_file(path, 0, &error);
  SMOE_CHECK(json_is_object(from), SMOE_ERR_FORMAT, "cannot read '%s' as JSON: %s", path,
             from ? "no object" : error.text);
  const char *type = json_string_value(json_object_get(from, "model_type"));
  smoe_status status;
  *layout = type && strcmp(type, "gpt2") == 0 ? SMOE_LAYOUT_GPT2 : SMOE_LAYOUT_LLAMA;
  if (type && (strcmp(type, "gpt2") == 0 || strcmp(type, "llama") == 0))
    status = *layout == SMOE_LAYOUT_GPT2 ? read_gpt2(config, from) : read_llama(config, from);
  else
    status =
        SMOE_FAIL(SMOE_ERR_CONFIG, "'%s': model_type '%s'; gpt2 and llama are read", path, type ? type : "");
  json_decref(from);
  return status;
}

static void write_gpt2(smoe_json *json, const smoe_settings *s) {
  smoe_json_text(json, "model_type", "gpt2");
  smoe_json_int(json, "n_embd", s->model.width);
  smoe_json_int(json, "n_layer", s->model.blocks);
  smoe_json_int(json, "n_head", s->model.heads);
  smoe_json_int(json, "n_positions", s->model.context);
  smoe_json_int(json, "n_inner", s->model.inner);
  smoe_json_text(json, "activation_function", "gelu");
  smoe_json_real(json, "layer_norm_epsilon", NORM_EPSILON, DIGITS);
}

static void write_llama(smoe_json *json, const smoe_settings *s, int64_t kv_heads, double rope_base) {
  smoe_json_text(json, "model_type", "llama");
  smoe_json_int(json, "hidden_size", s->model.width);
  smoe_json_int(json, "intermediate_size", s->model.inner);
  smoe_json_int(json, "num_hidden_layers", s->model.blocks);
  smoe_json_int(json, "num_attention_heads", s->model.heads);
  smoe_json_int(json, "num_key_value_heads", kv_heads);
  smoe_json_int(json, "max_position_embeddings", s->model.context);
  smoe_json_real(json, "rope_theta", rope_base, 17);
  smoe_json_real(json, "rms_norm_eps", NORM_EPSILON, DIGITS);
  smoe_json_text(json, "hidden_act", "silu");
  smoe_json_bool(json, "attention_bias", false);
  smoe_json_bool(json, "mlp_bias", false);
}

void smoe_layout_write_config(smoe_layout layout, const smoe_config *config, int64_t vocabulary,
                              smoe_json *json) {
  const smoe_settings *s = smoe_config_settings(config);
  const bool gpt2 = layout == SMOE_LAYOUT_GPT2;
  char *base = value_of(config, "model.decoder.rope_base");
  smoe_json_object(json, NULL);
  smoe_json_array(json, "architectures");
  smoe_json_text(json, NULL, gpt2 ? "GPT2LMHeadModel" : "LlamaForCausalLM");
  smoe_json_end(json);
  smoe_json_int(json, "vocab_size", vocabulary);
  if (gpt2)
    write_gpt2(json, s);
  else
    write_llama(json, s, smoe_layout_sizes_of(config).kv_heads, strtod(base, NULL));
  smoe_json_bool(json, "tie_word_embeddings", is(config, "model.decoder.tied", "true"));
  smoe_json_text(json, "torch_dtype", "float32");
  smoe_json_end(json);
  smoe_free(base);
}
