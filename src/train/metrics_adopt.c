#include "metrics_adopt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stablemoe/arena.h"
#include "stablemoe/log.h"
#include "stablemoe/plain_file.h"

/* A file read line by line. */
typedef struct lines {
  FILE *file;
  char *text; /* the line, with its end; memory of the C library */
  size_t room;
  ssize_t n;
  int64_t before; /* update of the line before */
} lines;

/* The next line; false at the end, and at one that has no end or holds what no text does. */
static bool next(lines *in) {
  in->n = getline(&in->text, &in->room, in->file);
  return in->n > 0 && in->text[in->n - 1] == '\n' && !memchr(in->text, '\0', (size_t)in->n);
}

/* The next line of an update <= update. A machine that fell may leave zeros, or the end of something
 * else: lines count as long as their updates go up.
 */
static bool next_update(lines *in, int64_t update) {
  if (!next(in)) return false;
  const int64_t number = strtoll(in->text, NULL, 10);
  const bool fits = number > in->before && number <= update;
  in->before = number;
  return fits;
}

/* ---- the same header ---- */

static smoe_status cut(lines *in, const char *path, int64_t update) {
  long keep = in->n;
  while (next_update(in, update)) keep += in->n;
  SMOE_CHECK(truncate(path, keep) == 0, SMOE_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
  return SMOE_OK;
}

/* ---- another one ---- */

/* Fields of a line, the line cut up in place. */
typedef struct fields {
  char **field;
  size_t n, room;
} fields;

static void split(fields *out, char *line) {
  line[strcspn(line, "\r\n")] = '\0';
  out->n = 0;
  for (char *at = line; at; at = strchr(at, ',')) {
    if (out->n > 0) *at++ = '\0';
    if (out->n == out->room) {
      out->room = out->room ? 2 * out->room : 64;
      out->field = smoe_realloc(out->field, out->room * sizeof *out->field);
    }
    out->field[out->n++] = at;
  }
}

typedef struct table {
  char *old_text, *new_text; /* of the headers below */
  fields old, new, row;
  long *source; /* [new.n] which old column; -1: none had this name */
  size_t n_added, n_lost, n_bad;
} table;

static void match_columns(table *t) {
  t->source = smoe_alloc((t->new.n + 1) * sizeof *t->source);
  t->n_lost = t->old.n;
  for (size_t i = 0; i < t->new.n; i++) {
    t->source[i] = -1;
    for (size_t j = 0; j < t->old.n && t->source[i] < 0; j++)
      if (strcmp(t->new.field[i], t->old.field[j]) == 0) t->source[i] = (long)j;
    if (t->source[i] < 0)
      t->n_added++;
    else
      t->n_lost--;
  }
}

/* A line of the old header, or of the new one: versions before this one went on below the old header. */
static void write_row(table *t, char *line, FILE *out) {
  split(&t->row, line);
  const bool old = t->row.n == t->old.n;
  if (!old && t->row.n != t->new.n) {
    t->n_bad++;
    return;
  }
  for (size_t i = 0; i < t->new.n; i++) {
    const long from = old ? t->source[i] : (long)i;
    fprintf(out, "%s%s", i ? "," : "", from < 0 ? "" : t->row.field[from]);
  }
  fputc('\n', out);
}

/* A copy of the file under the first name that is free: metrics-1.csv, ... */
static smoe_status keep_beside(const char *path, char **name) {
  const int stem = (int)strlen(path) - 4; /* without ".csv" */
  *name = NULL;
  for (int i = 1; !*name || access(*name, F_OK) == 0; i++) {
    smoe_free(*name);
    *name = smoe_sprintf("%.*s-%d.csv", stem, path, i);
  }
  FILE *in = fopen(path, "r");
  SMOE_CHECK(in, SMOE_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  smoe_plain_file out;
  char block[1 << 14];
  smoe_status status = smoe_plain_create(&out, *name, 0);
  for (size_t n; status == SMOE_OK && (n = fread(block, 1, sizeof block, in)) > 0;)
    status = smoe_plain_write(&out, block, n);
  if (status == SMOE_OK && ferror(in)) status = SMOE_FAIL(SMOE_ERR_IO, "cannot read '%s'", path);
  fclose(in);
  if (status == SMOE_OK) status = smoe_plain_finish(&out);
  if (status == SMOE_OK) status = smoe_plain_publish(&out);
  smoe_plain_release(&out);
  return status;
}

static void say(const table *t, const char *path, const char *beside, int64_t update) {
  char more[64] = "",
       *copy = beside ? smoe_sprintf("; as it was it is kept as '%s'", beside) : smoe_strdup("");
  if (t->n_added > 0)
    snprintf(more, sizeof more, " (%zu are new, and empty up to update %lld)", t->n_added, (long long)update);
  smoe_note(
      "'%s' was begun by another version of this program: written anew with the columns of this one%s%s",
      path, more, copy);
  smoe_free(copy);
}

static smoe_status write_anew(table *t, lines *in, const char *path, const char *header, int64_t update) {
  smoe_plain_file out;
  smoe_status status = smoe_plain_create(&out, path, 0);
  if (status == SMOE_OK) {
    fputs(header, out.stream);
    while (next_update(in, update)) write_row(t, in->text, out.stream);
    status = smoe_plain_finish(&out);
  }
  char *beside = NULL;
  if (status == SMOE_OK && (t->n_lost > 0 || t->n_bad > 0)) status = keep_beside(path, &beside);
  if (status == SMOE_OK) status = smoe_plain_publish(&out);
  if (status == SMOE_OK) say(t, path, beside, update);
  smoe_free(beside);
  smoe_plain_release(&out);
  return status;
}

static smoe_status convert(lines *in, const char *path, const char *header, int64_t update) {
  table t = {.old_text = smoe_strdup(in->text), .new_text = smoe_strdup(header)};
  split(&t.old, t.old_text);
  split(&t.new, t.new_text);
  match_columns(&t);
  const smoe_status status = write_anew(&t, in, path, header, update);
  smoe_free(t.source);
  smoe_free(t.old.field);
  smoe_free(t.new.field);
  smoe_free(t.row.field);
  smoe_free(t.old_text);
  smoe_free(t.new_text);
  return status;
}

static smoe_status adopt(lines *in, const char *path, const char *header, int64_t update, bool *kept) {
  const bool sound = next(in);
  *kept = sound && strncmp(in->text, "update,", 7) == 0;
  if (*kept && strcmp(in->text, header) == 0) return cut(in, path, update);
  if (*kept) return convert(in, path, header, update);
  /* A first line without its end, or none: nothing comes after it. */
  if (in->n <= 0 || in->text[in->n - 1] != '\n') return SMOE_OK;
  char *beside;
  const smoe_status status = keep_beside(path, &beside);
  if (status == SMOE_OK)
    smoe_warn("the first line of '%s' names no columns: it is kept as '%s', and a new file begun", path,
              beside);
  smoe_free(beside);
  return status;
}

smoe_status smoe_metrics_adopt(const char *path, const char *header, int64_t update, bool *kept) {
  *kept = false;
  lines in = {.file = fopen(path, "r")};
  if (!in.file && errno == ENOENT) return SMOE_OK;
  SMOE_CHECK(in.file, SMOE_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  const smoe_status status = adopt(&in, path, header, update, kept);
  smoe_free(in.text); /* memory of the C library */
  fclose(in.file);
  return status;
}
