#include "evaluate_print.h"

#include <math.h>

#include "stablemoe/json.h"

enum { DIGITS = 9, LABEL = 48 };

static double mean(const smoe_tally *t) {
  return t->n ? t->loss / (double)t->n : NAN;
}

/* ---- text ---- */

static void print_heading(FILE *out, const char *title) {
  fprintf(out, "\n  %-26s %12s %8s %10s %12s\n", title, "tokens", "share", "nats", "perplexity");
}

static void print_tally(FILE *out, const char *label, const smoe_tally *t, double all) {
  fprintf(out, "    %-24s %12lld %7.1f%% ", label, (long long)t->n, all > 0 ? 100 * (double)t->n / all : 0);
  if (t->n)
    fprintf(out, "%10.4f %12.2f\n", mean(t), exp(mean(t)));
  else
    fprintf(out, "%10s %12s\n", "-", "-");
}

static void print_frequencies(FILE *out, const smoe_evaluation_report *r) {
  print_heading(out, "occurrences in training");
  int64_t low = 1;
  for (int i = 0; i<SMOE_FREQUENCIES; i++, low *= i> 1 ? 10 : 1) {
    const smoe_tally *t = &r->breakdown->frequency[i];
    char label[LABEL];
    if (t->n == 0) continue;
    if (i == 0)
      snprintf(label, sizeof label, "never");
    else
      snprintf(label, sizeof label, "%lld to %lld", (long long)low, (long long)(10 * low - 1));
    print_tally(out, label, t, r->result->n_targets);
  }
}

static void print_experts(FILE *out, const smoe_evaluation_report *r) {
  const smoe_breakdown *b = r->breakdown;
  for (int m = 0; m < b->n_moe; m++) {
    char label[LABEL];
    snprintf(label, sizeof label, "MoE layer %d", m);
    print_heading(out, label);
    for (int e = 0; e < b->n_experts; e++) {
      snprintf(label, sizeof label, "expert %d", e);
      print_tally(out, label, &b->expert[m * b->n_experts + e], r->result->n_targets);
    }
  }
}

/* Which experts' tokens are easiest and hardest, in a line. */
static void print_extremes(FILE *out, const smoe_evaluation_report *r) {
  const smoe_breakdown *b = r->breakdown;
  for (int m = 0; m < b->n_moe; m++) {
    const smoe_tally *t = &b->expert[m * b->n_experts];
    int easy = -1, hard = -1;
    for (int e = 0; e < b->n_experts; e++) {
      if (t[e].n == 0) continue;
      if (easy < 0 || mean(&t[e]) < mean(&t[easy])) easy = e;
      if (hard < 0 || mean(&t[e]) > mean(&t[hard])) hard = e;
    }
    if (easy >= 0)
      fprintf(out, "  MoE layer %-5d %.4f nats per token at expert %d to %.4f at expert %d\n", m,
              mean(&t[easy]), easy, mean(&t[hard]), hard);
  }
}

static void print_documents(FILE *out, const smoe_evaluation_report *r) {
  const smoe_breakdown *b = r->breakdown;
  if (b->n_worst == 0) return;
  print_heading(out, "worst documents");
  for (int64_t i = 0; i < b->n_worst; i++) {
    char label[LABEL];
    snprintf(label, sizeof label, "document %lld", (long long)b->worst[i].number);
    print_tally(out, label, &b->worst[i].tally, r->result->n_targets);
    if (r->beginning) fprintf(out, "      %s\n", r->beginning[i]);
  }
}

void smoe_evaluation_print_text(FILE *out, const smoe_evaluation_report *r) {
  const smoe_evaluation *e = r->result;
  const smoe_breakdown *b = r->breakdown;
  fprintf(out, "%s split, %.0f tokens\n", r->split, e->n_targets);
  fprintf(out, "  cross entropy   %.4f nats per token\n", e->loss);
  fprintf(out, "  perplexity      %.2f per token\n", e->perplexity);
  if (isfinite(r->bits_per_byte))
    fprintf(out, "  bits per byte   %.4f, perplexity %.3f per byte\n", r->bits_per_byte,
            exp2(r->bits_per_byte));
  if (b->n_documents > 0)
    fprintf(out, "  documents       %lld, mean document loss %.4f nats per token\n",
            (long long)b->n_documents, b->document_loss / (double)b->n_documents);
  if (e->drop_rate > 0) fprintf(out, "  dropped         %.2f %% of rows, by capacity\n", 100 * e->drop_rate);
  if (!r->experts) print_extremes(out, r);
  print_frequencies(out, r);
  if (r->experts) print_experts(out, r);
  print_documents(out, r);
}

/* ---- JSON ---- */

static void json_tally(smoe_json *json, const smoe_tally *t) {
  smoe_json_int(json, "tokens", t->n);
  smoe_json_real(json, "loss", mean(t), DIGITS);
}

static void json_frequencies(smoe_json *json, const smoe_breakdown *b) {
  smoe_json_array(json, "frequency");
  int64_t low = 1;
  for (int i = 0; i<SMOE_FREQUENCIES; i++, low *= i> 1 ? 10 : 1) {
    if (b->frequency[i].n == 0) continue;
    smoe_json_object(json, NULL);
    smoe_json_int(json, "least", i ? low : 0);
    smoe_json_int(json, "most", i ? 10 * low - 1 : 0);
    json_tally(json, &b->frequency[i]);
    smoe_json_end(json);
  }
  smoe_json_end(json);
}

static void json_experts(smoe_json *json, const smoe_breakdown *b) {
  smoe_json_array(json, "experts");
  for (int m = 0; m < b->n_moe; m++) {
    smoe_json_array(json, NULL);
    for (int e = 0; e < b->n_experts; e++) {
      smoe_json_object(json, NULL);
      json_tally(json, &b->expert[m * b->n_experts + e]);
      smoe_json_end(json);
    }
    smoe_json_end(json);
  }
  smoe_json_end(json);
}

static void json_documents(smoe_json *json, const smoe_evaluation_report *r) {
  const smoe_breakdown *b = r->breakdown;
  smoe_json_object(json, "documents");
  smoe_json_int(json, "number", b->n_documents);
  smoe_json_real(json, "mean_loss", b->document_loss / (double)b->n_documents, DIGITS);
  smoe_json_array(json, "worst");
  for (int64_t i = 0; i < b->n_worst; i++) {
    smoe_json_object(json, NULL);
    smoe_json_int(json, "document", b->worst[i].number);
    json_tally(json, &b->worst[i].tally);
    if (r->beginning) smoe_json_text(json, "beginning", r->beginning[i]);
    smoe_json_end(json);
  }
  smoe_json_end(json);
  smoe_json_end(json);
}

void smoe_evaluation_print_json(FILE *out, const smoe_evaluation_report *r) {
  const smoe_evaluation *e = r->result;
  smoe_json json;
  smoe_json_begin(&json, out, 0);
  smoe_json_object(&json, NULL);
  smoe_json_text(&json, "split", r->split);
  smoe_json_int(&json, "update", r->update);
  smoe_json_int(&json, "stage", r->stage);
  smoe_json_fixed(&json, "tokens", e->n_targets, 0);
  smoe_json_real(&json, "loss", e->loss, DIGITS);
  smoe_json_real(&json, "perplexity", e->perplexity, DIGITS);
  if (isfinite(r->bits_per_byte)) smoe_json_real(&json, "bits_per_byte", r->bits_per_byte, DIGITS);
  smoe_json_real(&json, "drop_rate", e->drop_rate, DIGITS);
  json_documents(&json, r);
  json_frequencies(&json, r->breakdown);
  json_experts(&json, r->breakdown);
  smoe_json_end(&json);
  smoe_json_finish(&json);
}
