/* Decoding: tokens read one by one, in parts, and again after a change of mind give the logits of a whole
 * pass, for every routing method; and the same bits on any number of ranks. */
#include "stablemoe/decode.h"

#include "harness.h"
#include "model_fixture.h"

enum { CONTEXT = 9, V = FIXTURE_VOCABULARY };

static smoe_group group;

/* A model for decoding, with its configuration. */
typedef struct subject {
  smoe_config *config;
  smoe_model *model;
  smoe_pass context;
} subject;

/* position "decoder": the family of that name, which places experts itself; "model.skip.what=...": the same, dense, with
 * gates. */
static subject open_on(const smoe_group *ranks, const char *method, const char *position, int stage) {
  const bool gates = strncmp(position, "model.skip", 10) == 0;
  const bool decoder = gates || strcmp(position, "decoder") == 0;
  char *where = decoder ? smoe_strdup("model.family=decoder") : smoe_sprintf("moe.position=%s", position);
  const char *layers = gates                                ? "moe.layers=0"
                       : strcmp(position, "scattered") == 0 ? "moe.layers=2"
                                                            : "moe.layers=1";
  const char *const overrides[] = {"model.context=9",
                                   layers,
                                   "train.batch_sequences=8",
                                   where,
                                   decoder ? "moe.sublayers=1" : NULL,
                                   "model.width=24",
                                   "model.heads=4",
                                   "model.decoder.kv_heads=2",
                                   "model.decoder.shared_experts=1",
                                   gates ? "model.blocks=4" : "model.blocks=2",
                                   gates ? position : "model.skip.what=none",
                                   gates && strstr(method, "topk") ? "model.skip.unit=token"
                                                                   : "model.skip.unit=sequence",
                                   NULL};
  subject s = {.config = fixture_config(method, overrides),
               .context = {.seed = 3, .update = 5, .stage = stage, .n_targets = 1}};
  const smoe_model_shape shape = {.vocabulary = V, .n_lanes = 1, .lane_sequences = 1};
  fixture_try(smoe_model_create(&s.model, s.config, ranks, &shape, false), "model");
  fixture_randomise(&s.model->params, 3);
  for (int m = 0; m < s.model->n_moe; m++) fixture_prepare(&s.model->moe[m]->router, &s.model->params);
  if (stage == 2) smoe_model_freeze(s.model);
  smoe_free(where);
  return s;
}

static void close_subject(subject *s) {
  smoe_model_destroy(s->model);
  smoe_config_destroy(s->config);
}

static double distance(const smoe_real *a, const smoe_real *b) {
  double most = 0;
  for (int i = 0; i < V; i++) {
    const double d = fabs((double)a[i] - (double)b[i]);
    if (!(d <= most)) most = d; /* NaN too */
  }
  return most;
}

/* Reading in parts of these sizes, and beginning at `first`, gives the whole pass's logits. */
static void compare_parts(smoe_decoder *cached, smoe_decoder *whole, const subject *s, const int32_t *token,
                          size_t first, const size_t *part, const char *name) {
  smoe_real one[V], other[V];
  const bool rows = group.rank == smoe_decoder_rank(cached);
  for (size_t at = first; at < CONTEXT; at += *part++) {
    smoe_decoder_read(cached, token + at, at, *part, &s->context, one);
    smoe_decoder_read(whole, token, 0, at + *part, &s->context, other);
    if (!rows) continue;
    const double d = distance(one, other);
    CHECK(d <= 1e-11, "%s: %zu tokens at %zu: logits differ by %g", name, *part, at, d);
  }
}

static void test_method(const char *method, const char *position, int stage) {
  static const size_t ones[] = {1, 1, 1, 1, 1, 1, 1, 1, 1}, parts[] = {4, 1, 2, 1, 1}, tail[] = {1, 3, 1};
  int32_t token[CONTEXT];
  fixture_tokens(token, NULL, 4, 0, CONTEXT, 0);
  subject s = open_on(&group, method, position, stage);
  smoe_decoder *cached, *whole;
  fixture_try(smoe_decoder_create(&cached, s.model, true), "decoder");
  fixture_try(smoe_decoder_create(&whole, s.model, false), "decoder");
  CHECK(!smoe_decoder_is_cached(whole));
  compare_parts(cached, whole, &s, token, 0, ones, method);
  compare_parts(cached, whole, &s, token, 0, parts, method);
  /* Another text from place 4 on. */
  for (size_t i = 4; i < CONTEXT; i++) token[i] = (token[i] + 5) % V;
  compare_parts(cached, whole, &s, token, 4, tail, method);
  smoe_decoder_destroy(cached);
  smoe_decoder_destroy(whole);
  close_subject(&s);
}

/* The last logits of a text read as 4 tokens and then one by one; on the decoding rank. */
static void last_logits(const smoe_group *ranks, const char *method, smoe_real *logits) {
  int32_t token[CONTEXT];
  fixture_tokens(token, NULL, 4, 0, CONTEXT, 0);
  subject s = open_on(ranks, method, "scattered", 2);
  smoe_decoder *decoder;
  fixture_try(smoe_decoder_create(&decoder, s.model, true), "decoder");
  smoe_decoder_read(decoder, token, 0, 4, &s.context, logits);
  for (size_t i = 4; i < CONTEXT; i++) smoe_decoder_read(decoder, token + i, i, 1, &s.context, logits);
  smoe_group_broadcast(ranks, logits, V * sizeof *logits, smoe_decoder_rank(decoder));
  smoe_decoder_destroy(decoder);
  close_subject(&s);
}

static void test_bits(const char *method) {
  const smoe_group alone = {.comm = MPI_COMM_SELF, .rank = 0, .n_ranks = 1};
  smoe_real together[V], one[V];
  last_logits(&group, method, together);
  last_logits(&alone, method, one);
  CHECK(memcmp(together, one, sizeof one) == 0, "%s: other bits than on one rank, by %g", method,
        distance(together, one));
}

/* What is documented to keep nothing does so, and no other method. */
static void test_sight(void) {
  static const struct {
    const char *method;
    bool cached;
  } cases[] = {{"stable", true},
               {"stable router.stable.features=transformer", true},
               {"hash router.hash.variant=position", true},
               {"expert_choice", true},
               {"expert_choice router.expert_choice.evaluation=experts", false}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    subject s = open_on(&group, cases[i].method, "middle", 1);
    smoe_decoder *decoder;
    fixture_try(smoe_decoder_create(&decoder, s.model, true), "decoder");
    CHECK(smoe_decoder_is_cached(decoder) == cases[i].cached, "%s", cases[i].method);
    smoe_decoder_destroy(decoder);
    close_subject(&s);
  }
}

static void test_window(void) {
  for (size_t context = 1; context < 12; context++)
    for (size_t n = 1; n < 60; n++) {
      const size_t first = smoe_decoder_window(n, context), kept = n - first;
      CHECK(first < n && kept <= context, "%zu of %zu in a context of %zu", kept, n, context);
      CHECK(n > context || first == 0);
      CHECK(2 * kept >= context || first == 0, "%zu kept of a context of %zu", kept, context);
      CHECK(first >= smoe_decoder_window(n - 1, context));
    }
}

int main(int argc, char **argv) {
  smoe_group_start(&group, &argc, &argv);
  char **methods = fixture_methods();
  for (size_t i = 0; methods[i]; i++) {
    test_method(methods[i], "scattered", 1);
    test_method(methods[i], i % 2 ? "top" : "bottom", 2);
    test_method(methods[i], "decoder", 2);
    test_bits(methods[i]);
  }
  fixture_methods_free(methods);
  static const char *const whats[] = {"model.skip.what=attention", "model.skip.what=ffn",
                                      "model.skip.what=block"};
  for (int i = 0; i < 3; i++) {
    test_method("switch", whats[i], 1); /* a running mean */
    test_method("topk", whats[i], 1);   /* each token alone */
  }
  test_sight();
  test_window();
  smoe_group_end(&group);
  return test_verdict("decode");
}
