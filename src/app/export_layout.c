#include "export_layout.h"

#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/json.h"
#include "stablemoe/log.h"
#include "stablemoe/plain_file.h"
#include "stablemoe/safetensors.h"

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

/* The file's first bytes; *data: of the values behind them. In memory of smoe_alloc. */
static char *make_header(const writer *w, size_t *bytes, int64_t *data) {
  smoe_safetensors_header header;
  smoe_safetensors_begin(&header, "pt", NULL);
  for (size_t i = 0; i < w->n_pieces; i++) {
    const piece *p = &w->piece[i];
    const int64_t rows = p->part.rows, columns = p->columns;
    const int64_t shape[2] = {p->part.transposed ? columns : rows, p->part.transposed ? rows : columns};
    smoe_safetensors_add(&header, p->part.tensor, w->content[p->entry].n_dims == 1 ? 1 : 2, shape);
  }
  *data = header.data;
  return smoe_safetensors_end(&header, bytes);
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
  char *text = make_header(w, &bytes, &data);
  smoe_status status = smoe_plain_create(file, output, (int64_t)bytes + data);
  if (status == SMOE_OK) status = smoe_plain_write(file, text, bytes);
  smoe_free(text);
  if (status == SMOE_OK) status = write_values(w, file);
  return status == SMOE_OK ? smoe_plain_finish(file) : status;
}

static smoe_status write_config(smoe_layout layout, const smoe_config *config, int64_t vocabulary,
                                const char *output, smoe_plain_file *file) {
  const char *slash = strrchr(output, '/');
  char *path = smoe_sprintf("%.*sconfig.json", slash ? (int)(slash - output + 1) : 0, output);
  size_t bytes;
  smoe_json json;
  smoe_json_begin_text(&json, 1);
  smoe_layout_write_config(layout, config, vocabulary, &json);
  char *text = smoe_json_take(&json, &bytes);
  smoe_status status = smoe_plain_create(file, path, (int64_t)bytes);
  if (status == SMOE_OK) status = smoe_plain_write(file, text, bytes);
  if (status == SMOE_OK) status = smoe_plain_finish(file);
  smoe_free(text);
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
