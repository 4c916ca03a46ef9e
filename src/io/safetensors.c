#include "stablemoe/safetensors.h"

#include <string.h>
#include <unistd.h>

#include "checkpoint_entry.h"
#include "stablemoe/json.h"
#include "stablemoe/plain_file.h"

typedef struct tensor {
  char *name;
  size_t entry; /* of the checkpoint */
  int64_t copy; /* expert; -1: all copies */
  size_t file;  /* 0, or 1 + expert */
} tensor;

typedef struct writer {
  const smoe_export *export;
  char *stem;
  hid_t checkpoint;
  smoe_entry *entry;
  size_t n_entries;
  tensor *tensor;
  size_t n_tensors, n_parts; /* n_parts: safetensors files */
  smoe_plain_file *file;     /* [n_parts + 3]: the parts, index, tokenizer, about */
  size_t n_files;            /* begun */
  smoe_real *buffer;
} writer;

/* ---- what stands where ---- */

static void add_tensor(writer *w, size_t entry, int64_t copy, char *name) {
  w->tensor = smoe_realloc(w->tensor, (w->n_tensors + 1) * sizeof *w->tensor);
  w->tensor[w->n_tensors++] =
      (tensor){.name = name, .entry = entry, .copy = copy, .file = (size_t)(copy + 1)};
  if (w->n_parts < (size_t)copy + 2) w->n_parts = (size_t)(copy + 2);
}

/* "moe0/expert/ffn0/w1" of expert 3 alone is "moe0/expert/3/ffn0/w1". */
static char *expert_name(const char *name, int64_t expert) {
  const char *at = strstr(name, "/expert/");
  const char *rest = at ? at + 8 : "";
  return smoe_sprintf("%.*s%s%lld%s%s", at ? (int)(rest - name) : (int)strlen(name), name, at ? "" : "/",
                      (long long)expert, at ? "/" : "", rest);
}

static smoe_status plan(writer *w) {
  char **names;
  SMOE_TRY(smoe_checkpoint_check(w->checkpoint));
  smoe_status status = smoe_h5_list(w->checkpoint, smoe_set_folder[0], &names);
  w->n_parts = 1;
  for (char **name = names; *name && status == SMOE_OK; name++) {
    w->entry = smoe_realloc(w->entry, (w->n_entries + 1) * sizeof *w->entry);
    smoe_entry *e = &w->entry[w->n_entries];
    status = smoe_entry_describe(w->checkpoint, 0, *name, e);
    if (status != SMOE_OK) break;
    const bool split = w->export->split_experts && e->expert;
    if (!split) add_tensor(w, w->n_entries, -1, smoe_strdup(*name));
    for (int64_t i = 0; split && i < e->n_copies; i++) add_tensor(w, w->n_entries, i, expert_name(*name, i));
    w->n_entries++;
  }
  smoe_h5_list_free(names);
  return status;
}

/* ---- one file ---- */

static char *part_name(const writer *w, size_t part) {
  return part == 0 ? smoe_strdup(w->export->output)
                   : smoe_sprintf("%s.expert-%05zu.safetensors", w->stem, part - 1);
}

/* The file's first bytes; *data: of the values behind them. In memory of smoe_alloc. */
static char *make_header(const writer *w, size_t part, size_t *bytes, int64_t *data) {
  smoe_safetensors_header header;
  smoe_safetensors_begin(&header, "stablemoe", w->export->about);
  for (size_t i = 0; i < w->n_tensors; i++) {
    const tensor *t = &w->tensor[i];
    const smoe_entry *e = &w->entry[t->entry];
    const int first = t->copy < 0 ? 0 : 1; /* an expert's own tensor lacks the experts' dimension */
    if (t->file == part) smoe_safetensors_add(&header, t->name, e->n_dims - first, e->shape + first);
  }
  *data = header.data;
  return smoe_safetensors_end(&header, bytes);
}

static smoe_status take(void *context, const smoe_real *values, size_t n) {
  return smoe_plain_write(context, values, n * sizeof *values);
}

static smoe_status write_tensor(writer *w, smoe_plain_file *file, const tensor *t) {
  const smoe_entry *e = &w->entry[t->entry];
  const int64_t first = t->copy < 0 ? 0 : t->copy, end = t->copy < 0 ? e->n_copies : t->copy + 1;
  for (int64_t copy = first; copy < end; copy++) {
    bool good = false;
    SMOE_TRY(smoe_entry_read(w->checkpoint, e, copy, w->buffer, &good, take, file));
    SMOE_CHECK(good, SMOE_ERR_FORMAT, "'%s' is damaged: the checksum of '%s'%s is wrong",
               w->export->checkpoint, e->name, e->expert ? " of an expert" : "");
  }
  return SMOE_OK;
}

static smoe_status create(writer *w, char *path, int64_t bytes, smoe_plain_file **file) {
  *file = &w->file[w->n_files++];
  const smoe_status status = smoe_plain_create(*file, path, bytes);
  smoe_free(path);
  return status;
}

static smoe_status write_part(writer *w, size_t part, smoe_export_result *result) {
  size_t bytes;
  int64_t data;
  smoe_plain_file *file;
  char *text = make_header(w, part, &bytes, &data);
  smoe_status status = create(w, part_name(w, part), (int64_t)bytes + data, &file);
  if (status == SMOE_OK) status = smoe_plain_write(file, text, bytes);
  smoe_free(text);
  for (size_t i = 0; i < w->n_tensors && status == SMOE_OK; i++)
    if (w->tensor[i].file == part) status = write_tensor(w, file, &w->tensor[i]);
  SMOE_TRY(status);
  result->n_bytes += (int64_t)bytes + data;
  result->n_values += data / (int64_t)sizeof(smoe_real);
  return smoe_plain_finish(file);
}

/* ---- the files beside ---- */

static smoe_status write_whole(writer *w, const char *ending, const void *data, size_t bytes) {
  smoe_plain_file *file;
  SMOE_TRY(create(w, smoe_sprintf("%s%s", w->stem, ending), (int64_t)bytes, &file));
  SMOE_TRY(smoe_plain_write(file, data, bytes));
  return smoe_plain_finish(file);
}

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

/* Which file has which tensor, in the form that readers of several safetensors files know. */
static smoe_status write_index(writer *w, int64_t n_values) {
  size_t bytes;
  smoe_json json;
  smoe_json_begin_text(&json, 2);
  smoe_json_object(&json, NULL);
  smoe_json_object(&json, "metadata");
  smoe_json_int(&json, "total_size", n_values * (int64_t)sizeof(smoe_real));
  smoe_json_end(&json);
  smoe_json_object(&json, "weight_map");
  for (size_t i = 0; i < w->n_tensors; i++) {
    char *name = part_name(w, w->tensor[i].file);
    smoe_json_text(&json, w->tensor[i].name, base_name(name));
    smoe_free(name);
  }
  smoe_json_end(&json);
  smoe_json_end(&json);
  char *text = smoe_json_take(&json, &bytes);
  const smoe_status status = write_whole(w, ".safetensors.index.json", text, bytes);
  smoe_free(text);
  return status;
}

static smoe_status write_files(writer *w, smoe_export_result *result) {
  SMOE_TRY(plan(w));
  w->file = smoe_alloc((w->n_parts + 3) * sizeof *w->file);
  w->buffer = smoe_alloc(SMOE_ENTRY_CHUNK * sizeof *w->buffer);
  for (size_t part = 0; part < w->n_parts; part++) SMOE_TRY(write_part(w, part, result));
  if (w->export->split_experts) SMOE_TRY(write_index(w, result->n_values));
  if (w->export->tokenizer)
    SMOE_TRY(write_whole(w, ".tokenizer", w->export->tokenizer, w->export->tokenizer_bytes));
  SMOE_TRY(write_whole(w, ".json", w->export->about, strlen(w->export->about)));
  /* The one that a reader opens first comes last. */
  for (size_t i = w->n_files; i-- > 0;) SMOE_TRY(smoe_plain_publish(&w->file[i]));
  if (!w->export->split_experts) {
    /* An index of an export before this one would send readers to files that are not of this one. */
    char *index = smoe_sprintf("%s.safetensors.index.json", w->stem);
    unlink(index);
    smoe_free(index);
  }
  result->n_files = (int64_t)w->n_files;
  result->n_tensors = (int64_t)w->n_tensors;
  return SMOE_OK;
}

smoe_status smoe_export_write(const smoe_export *export, smoe_export_result *result) {
  static const char ENDING[] = ".safetensors";
  const size_t length = strlen(export->output), ending = strlen(ENDING);
  *result = (smoe_export_result){0};
  SMOE_CHECK(length > ending && strcmp(export->output + length - ending, ENDING) == 0, SMOE_ERR_CONFIG,
             "'%s' should end in %s", export->output, ENDING);
  writer w = {.export = export, .stem = smoe_sprintf("%.*s", (int)(length - ending), export->output)};
  smoe_status status = smoe_h5_open(&w.checkpoint, export->checkpoint);
  if (status == SMOE_OK) {
    status = write_files(&w, result);
    smoe_h5_close(w.checkpoint);
  }
  for (size_t i = 0; i < w.n_files; i++) smoe_plain_release(&w.file[i]);
  for (size_t i = 0; i < w.n_tensors; i++) smoe_free(w.tensor[i].name);
  smoe_free(w.file);
  smoe_free(w.tensor);
  smoe_free(w.entry);
  smoe_free(w.buffer);
  smoe_free(w.stem);
  return status;
}
