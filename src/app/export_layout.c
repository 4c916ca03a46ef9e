#include "export_layout.h"

#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/json.h"
#include "stablemoe/log.h"
#include "stablemoe/plain_file.h"

#ifdef SMOE_DOUBLE
#define DTYPE "F64"
#else
#define DTYPE "F32"
#endif

/* Part `part` of content[entry]. */
typedef struct piece {
  int64_t entry;
  smoe_layout_part part;
  int64_t columns; /* values of a row */
} piece;

typedef struct writer {
  const char *checkpoint;
  smoe_checkpoint_content *content;
  int64_t n_content;
  piece *piece;
  size_t n_pieces;
} writer;

static smoe_status plan(writer *w, smoe_layout layout, const smoe_config *config) {
  const smoe_layout_sizes sizes = smoe_layout_sizes_of(config);
  for (int64_t i = 0; i < w->n_content; i++) {
    const smoe_checkpoint_content *c = &w->content[i];
    smoe_layout_part part[SMOE_LAYOUT_PARTS];
    const int n = smoe_layout_parts(layout, &sizes, c->name, c->shape[0], part);
    SMOE_CHECK(n > 0, SMOE_ERR_CONFIG, "layout %s has no place for '%s'", smoe_layout_names[layout], c->name);
    w->piece = smoe_realloc(w->piece, (w->n_pieces + (size_t)n) * sizeof *w->piece);
    for (int k = 0; k < n; k++)
      w->piece[w->n_pieces++] = (piece){i, part[k], c->n_dims > 1 ? c->shape[1] : 1};
  }
  return SMOE_OK;
}

static void print_shape(FILE *out, const writer *w, const piece *p) {
  if (w->content[p->entry].n_dims == 1)
    fprintf(out, "[%lld]", (long long)p->part.rows);
  else if (p->part.transposed)
    fprintf(out, "[%lld, %lld]", (long long)p->columns, (long long)p->part.rows);
  else
    fprintf(out, "[%lld, %lld]", (long long)p->part.rows, (long long)p->columns);
}

/* In memory of the C library. */
static char *header(const writer *w, size_t *bytes, int64_t *data) {
  char *text = NULL;
  FILE *out = open_memstream(&text, bytes);
  if (!out) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory for a header");
  const uint64_t later = 0;
  fwrite(&later, sizeof later, 1, out);
  fputs("{\"__metadata__\": {\"format\": \"pt\"}", out);
  *data = 0;
  for (size_t i = 0; i < w->n_pieces; i++) {
    const piece *p = &w->piece[i];
    const int64_t size = p->part.rows * p->columns * (int64_t)sizeof(smoe_real);
    fputs(",\n", out);
    smoe_json_text(out, p->part.tensor);
    fputs(": {\"dtype\": \"" DTYPE "\", \"shape\": ", out);
    print_shape(out, w, p);
    fprintf(out, ", \"data_offsets\": [%lld, %lld]}", (long long)*data, (long long)(*data + size));
    *data += size;
  }
  fputs("}", out);
  while (ftell(out) % 8) fputc(' ', out);
  if (fclose(out) != 0) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory for a header");
  const uint64_t length = *bytes - sizeof length;
  memcpy(text, &length, sizeof length);
  return text;
}

static smoe_status write_piece(const piece *p, const smoe_real *values, smoe_plain_file *file) {
  const int64_t rows = p->part.rows, columns = p->columns;
  const smoe_real *from = values + p->part.first * columns;
  if (!p->part.transposed) return smoe_plain_write(file, from, (size_t)(rows * columns) * sizeof *from);
  smoe_real *row = smoe_alloc((size_t)rows * sizeof *row);
  smoe_status status = SMOE_OK;
  for (int64_t c = 0; c < columns && status == SMOE_OK; c++) {
    for (int64_t r = 0; r < rows; r++) row[r] = from[r * columns + c];
    status = smoe_plain_write(file, row, (size_t)rows * sizeof *row);
  }
  smoe_free(row);
  return status;
}

/* Pieces of one parameter follow one another: it is read once. */
static smoe_status write_values(const writer *w, smoe_plain_file *file) {
  smoe_status status = SMOE_OK;
  smoe_real *values = NULL;
  for (size_t i = 0; i < w->n_pieces && status == SMOE_OK; i++) {
    const piece *p = &w->piece[i];
    if (i == 0 || p->entry != w->piece[i - 1].entry) {
      const smoe_checkpoint_content *c = &w->content[p->entry];
      int64_t n = 1;
      for (int d = 0; d < c->n_dims; d++) n *= c->shape[d];
      smoe_free(values);
      values = smoe_alloc((size_t)n * sizeof *values);
      status = smoe_checkpoint_read_values(w->checkpoint, c->name, values);
    }
    if (status == SMOE_OK) status = write_piece(p, values, file);
  }
  smoe_free(values);
  return status;
}

static smoe_status write_tensors(const writer *w, const char *output, smoe_plain_file *file) {
  size_t bytes;
  int64_t data;
  char *text = header(w, &bytes, &data);
  smoe_status status = smoe_plain_create(file, output, (int64_t)bytes + data);
  if (status == SMOE_OK) status = smoe_plain_write(file, text, bytes);
  free(text); /* memory of the C library */
  if (status == SMOE_OK) status = write_values(w, file);
  return status == SMOE_OK ? smoe_plain_finish(file) : status;
}

static smoe_status write_config(smoe_layout layout, const smoe_config *config, int64_t vocabulary,
                                const char *output, smoe_plain_file *file) {
  const char *slash = strrchr(output, '/');
  char *path = smoe_sprintf("%.*sconfig.json", slash ? (int)(slash - output + 1) : 0, output), *text = NULL;
  size_t bytes = 0;
  FILE *out = open_memstream(&text, &bytes);
  if (!out) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory for a description");
  smoe_layout_print_config(layout, config, vocabulary, out);
  if (fclose(out) != 0) SMOE_PANIC(SMOE_ERR_MEMORY, "no memory for a description");
  smoe_status status = smoe_plain_create(file, path, (int64_t)bytes);
  if (status == SMOE_OK) status = smoe_plain_write(file, text, bytes);
  if (status == SMOE_OK) status = smoe_plain_finish(file);
  free(text); /* memory of the C library */
  smoe_free(path);
  return status;
}

static int64_t vocabulary_of(const writer *w) {
  for (int64_t i = 0; i < w->n_content; i++)
    if (strcmp(w->content[i].name, "embedding/table") == 0) return w->content[i].shape[0];
  return 0;
}

smoe_status smoe_export_layout(smoe_layout layout, const char *checkpoint, const smoe_config *config,
                               const char *output) {
  const smoe_group alone = {.comm = MPI_COMM_SELF, .rank = 0, .n_ranks = 1};
  writer w = {.checkpoint = checkpoint};
  smoe_plain_file tensors = {0}, about = {0};
  smoe_status status = smoe_layout_check(layout, config);
  if (status == SMOE_OK) status = smoe_checkpoint_describe(checkpoint, &alone, &w.content, &w.n_content);
  if (status == SMOE_OK) status = plan(&w, layout, config);
  if (status == SMOE_OK) status = write_config(layout, config, vocabulary_of(&w), output, &about);
  if (status == SMOE_OK) status = write_tensors(&w, output, &tensors);
  if (status == SMOE_OK) status = smoe_plain_publish(&about);
  if (status == SMOE_OK) status = smoe_plain_publish(&tensors);
  smoe_plain_release(&tensors);
  smoe_plain_release(&about);
  if (status == SMOE_OK)
    smoe_note("'%s' and config.json: %zu tensors in layout %s", output, w.n_pieces,
              smoe_layout_names[layout]);
  smoe_free(w.content);
  smoe_free(w.piece);
  return status;
}
