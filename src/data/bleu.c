#include "stablemoe/bleu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ngrams.h"
#include "stablemoe/arena.h"
#include "unicode.h"

smoe_status smoe_bleu_open(smoe_bleu *bleu, smoe_bleu_tokenizer tokenizer, bool lowercase) {
  *bleu = (smoe_bleu){.tokenizer = tokenizer, .lowercase = lowercase};
  return lowercase ? smoe_unicode_can_lower() : SMOE_OK;
}

/* ---- words ---- */

/** Replace a text wherever it is; `to` is not longer. */
static void replace(char *text, const char *from, const char *to) {
  const size_t n_from = strlen(from), n_to = strlen(to);
  char *write = text;
  for (const char *read = text; *read;) {
    if (strncmp(read, from, n_from) == 0) {
      memcpy(write, to, n_to);
      write += n_to;
      read += n_from;
    } else {
      *write++ = *read++;
    }
  }
  *write = '\0';
}

static bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

static bool is_stop(char c) {
  return c == '.' || c == ',';
}

/** ASCII characters that are words of their own wherever they are. */
static bool is_symbol(char c) {
  return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') ||
         (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
}

/* The four steps of 13a. Each goes through `text` (NUL-terminated) once and writes `out`; what it has taken as
 * part of a match it does not look at again, as substitution of regular expressions does. Bytes do for characters:
 * no step looks further than a neighbour, and only for ASCII.
 */

static void separate_symbols(const char *text, char *out) {
  for (; *text; text++) {
    if (is_symbol(*text))
      *out++ = ' ', *out++ = *text, *out++ = ' ';
    else
      *out++ = *text;
  }
  *out = '\0';
}

/** A full stop or comma after something that is not a digit. */
static void separate_stops_after(const char *text, char *out) {
  while (*text) {
    *out++ = *text;
    if (!is_digit(text[0]) && is_stop(text[1])) {
      *out++ = ' ', *out++ = text[1], *out++ = ' ';
      text++;
    }
    text++;
  }
  *out = '\0';
}

/** A full stop or comma before something that is not a digit. */
static void separate_stops_before(const char *text, char *out) {
  while (*text) {
    if (is_stop(text[0]) && text[1] && !is_digit(text[1])) {
      *out++ = ' ', *out++ = text[0], *out++ = ' ', *out++ = text[1];
      text++;
    } else {
      *out++ = *text;
    }
    text++;
  }
  *out = '\0';
}

/** A dash after a digit. */
static void separate_dashes(const char *text, char *out) {
  while (*text) {
    *out++ = *text;
    if (is_digit(text[0]) && text[1] == '-') {
      *out++ = ' ', *out++ = '-', *out++ = ' ';
      text++;
    }
    text++;
  }
  *out = '\0';
}

/** Put one blank between words, and none at the ends. In place: the text gets no longer. */
static void join_words(char *text) {
  const size_t bytes = strlen(text);
  int32_t *point = smoe_alloc((bytes + 1) * sizeof *point);
  const size_t n = smoe_unicode_decode(text, bytes, point);
  char *out = text;
  for (size_t i = 0; i < n; i++) {
    if (smoe_unicode_is_blank(point[i])) continue;
    if (out > text && smoe_unicode_is_blank(point[i - 1])) *out++ = ' ';
    out += smoe_unicode_encode(&point[i], 1, out);
  }
  *out = '\0';
  smoe_free(point);
}

/** A copy without blanks at the end, in lower case if asked for; with room for what the steps add. */
static char *prepare(const smoe_bleu *bleu, const char *text, size_t bytes, size_t *room) {
  int32_t *point = smoe_alloc((bytes + 1) * sizeof *point),
          *lower = smoe_alloc(2 * (bytes + 1) * sizeof *lower);
  size_t n = smoe_unicode_decode(text, bytes, point);
  if (bleu->lowercase)
    n = smoe_unicode_lower(point, n, lower);
  else
    memcpy(lower, point, n * sizeof *lower);
  while (n > 0 && smoe_unicode_is_blank(lower[n - 1])) n--;
  *room = 4 * n + 16;
  char *copy = smoe_alloc(*room);
  size_t used = 0;
  if (bleu->tokenizer == SMOE_BLEU_13A) copy[used++] = ' ';
  used += smoe_unicode_encode(lower, n, copy + used);
  if (bleu->tokenizer == SMOE_BLEU_13A) copy[used++] = ' ';
  copy[used] = '\0';
  smoe_free(point);
  smoe_free(lower);
  return copy;
}

char *smoe_bleu_tokenize(const smoe_bleu *bleu, const char *text, size_t bytes) {
  static void (*const steps[])(const char *, char *) = {separate_symbols, separate_stops_after,
                                                        separate_stops_before, separate_dashes};
  size_t room;
  char *line = prepare(bleu, text, bytes, &room);
  if (bleu->tokenizer == SMOE_BLEU_13A) {
    replace(line, "<skipped>", "");
    replace(line, "&quot;", "\"");
    replace(line, "&amp;", "&");
    replace(line, "&lt;", "<");
    replace(line, "&gt;", ">");
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
      char *next = smoe_alloc(3 * strlen(line) + 1);
      steps[i](line, next);
      smoe_free(line);
      line = next;
    }
  }
  join_words(line);
  return line;
}

/* ---- counting ---- */

static int by_text(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/** Cut a text at its blanks; returns the number of words. */
static size_t split_words(char *text, const char **word) {
  size_t n = 0;
  for (char *rest = text, *at; (at = strtok_r(rest, " ", &rest));) word[n++] = at;
  return n;
}

/** Number the words: equal ones get equal numbers. */
static void number_words(const char *const *word, size_t n, int32_t *number) {
  const char **order = smoe_alloc((n + 1) * sizeof *order);
  memcpy(order, word, n * sizeof *order);
  qsort(order, n, sizeof *order, by_text);
  size_t n_different = 0;
  for (size_t i = 0; i < n; i++)
    if (i == 0 || strcmp(order[i], order[n_different - 1]) != 0) order[n_different++] = order[i];
  for (size_t i = 0; i < n; i++) {
    const char **found = bsearch(&word[i], order, n_different, sizeof *order, by_text);
    number[i] = (int32_t)(found - order);
  }
  smoe_free(order);
}

void smoe_bleu_add(smoe_bleu *bleu, const char *reference, size_t reference_bytes, const char *hypothesis,
                   size_t hypothesis_bytes) {
  char *text[2] = {smoe_bleu_tokenize(bleu, hypothesis, hypothesis_bytes),
                   smoe_bleu_tokenize(bleu, reference, reference_bytes)};
  const size_t room = strlen(text[0]) + strlen(text[1]) + 2;
  const char **word = smoe_alloc(room * sizeof *word);
  int32_t *number = smoe_alloc(room * sizeof *number);
  const size_t n = split_words(text[0], word), m = split_words(text[1], word + n);
  number_words(word, n + m, number);
  bleu->n_segments++;
  bleu->hypothesis_words += (int64_t)n;
  bleu->reference_words += (int64_t)m;
  for (size_t order = 1; order <= SMOE_BLEU_ORDERS; order++) {
    bleu->correct[order - 1] += smoe_ngram_matches(number, n, number + n, m, order);
    bleu->total[order - 1] += smoe_ngram_count(n, order);
  }
  smoe_free(number);
  smoe_free(word);
  smoe_free(text[0]);
  smoe_free(text[1]);
}

void smoe_bleu_merge(smoe_bleu *bleu, const smoe_bleu *other) {
  bleu->n_segments += other->n_segments;
  bleu->hypothesis_words += other->hypothesis_words;
  bleu->reference_words += other->reference_words;
  for (int i = 0; i < SMOE_BLEU_ORDERS; i++) {
    bleu->correct[i] += other->correct[i];
    bleu->total[i] += other->total[i];
  }
}

double smoe_bleu_score(const smoe_bleu *bleu, double precision[SMOE_BLEU_ORDERS], double *brevity) {
  double p[SMOE_BLEU_ORDERS] = {0}, sum = 0, halved = 1;
  const double hypothesis = (double)bleu->hypothesis_words, reference = (double)bleu->reference_words;
  double bp = 1;
  if (hypothesis < reference) bp = hypothesis > 0 ? exp(1 - reference / hypothesis) : 0;
  int64_t n_correct = 0;
  bool complete = true; /* hypotheses have n-grams of all orders */
  for (int i = 0; i < SMOE_BLEU_ORDERS; i++) {
    n_correct += bleu->correct[i];
    complete = complete && bleu->total[i] > 0;
    if (!complete) continue;
    if (bleu->correct[i] == 0) halved *= 2;
    p[i] = bleu->correct[i] > 0 ? 100 * (double)bleu->correct[i] / (double)bleu->total[i]
                                : 100 / (halved * (double)bleu->total[i]);
    sum += log(p[i]);
  }
  if (brevity) *brevity = bp;
  if (precision) memcpy(precision, p, sizeof p);
  return complete && n_correct > 0 ? bp * exp(sum / SMOE_BLEU_ORDERS) : 0;
}

void smoe_bleu_signature(const smoe_bleu *bleu, char text[SMOE_SIGNATURE_BYTES]) {
  snprintf(text, SMOE_SIGNATURE_BYTES, "nrefs:1|case:%s|eff:no|tok:%s|smooth:exp",
           bleu->lowercase ? "lc" : "mixed", bleu->tokenizer == SMOE_BLEU_13A ? "13a" : "none");
}
