#include "corpus_file.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "stablemoe/arena.h"
#include "stablemoe/nodes.h"

/* Above, 16 bits do not hold an id. */
enum { SMALL_VOCABULARY = 65536 };

smoe_status smoe_corpus_open_file(void **file, char *kept, size_t size, const char *path,
                                  const smoe_corpus_words *words) {
  SMOE_CHECK(path[0], SMOE_ERR_CONFIG, "no corpus is named: set data.corpus to a file made by '%s'",
             words->prepare);
  SMOE_CHECK(strlen(path) < size, SMOE_ERR_CONFIG, "the path of the corpus is too long: '%s'", path);
  SMOE_CHECK(!smoe_fault("corpus.open"), SMOE_ERR_IO, "cannot open '%s': injected fault", path);
  memcpy(kept, path, strlen(path) + 1);
  SMOE_CHECK(access(path, F_OK) == 0, SMOE_ERR_IO, "cannot open '%s': %s; `%s%s -o %s` makes a %s", path,
             strerror(errno), words->prepare, words->inputs, path, words->corpus);
  hid_t opened;
  SMOE_TRY(smoe_h5_open(&opened, path));
  *file = smoe_alloc(sizeof opened);
  *(hid_t *)*file = opened;
  return SMOE_OK;
}

smoe_status smoe_corpus_check_same(const smoe_group *group, uint64_t fingerprint, const char *path,
                                   const smoe_corpus_words *words) {
  if (smoe_group_same(group, (int64_t)fingerprint, "the corpus") == SMOE_OK) return SMOE_OK;
  return SMOE_FAIL(SMOE_ERR_IO,
                   "not all ranks see the same %s in '%s': put it on a file system that all nodes share, or "
                   "copy the same file to each",
                   words->content, path);
}

hid_t smoe_corpus_token_type(int vocabulary) {
  return vocabulary > SMALL_VOCABULARY ? H5T_STD_U32LE : H5T_STD_U16LE;
}

smoe_status smoe_corpus_put(hid_t file, const char *name, hid_t file_type, hid_t memory_type,
                            const void *data, int64_t n) {
  SMOE_TRY(smoe_h5_dataset(file, name, file_type, 1, &n));
  return smoe_h5_write(file, name, memory_type, data, 0, n);
}

smoe_status smoe_corpus_put_tokenizer(hid_t file, const smoe_corpus_about *about) {
  const smoe_tokenizer *tokenizer = about->tokenizer;
  if (!tokenizer) return SMOE_OK;
  const int V = smoe_tokenizer_size(tokenizer);
  int64_t *offset = smoe_alloc(((size_t)V + 1) * sizeof *offset);
  for (int id = 0; id < V; id++)
    offset[id + 1] = offset[id] + (int64_t)strlen(smoe_tokenizer_piece(tokenizer, id));
  char *piece = smoe_alloc((size_t)offset[V] + 1);
  for (int id = 0; id < V; id++)
    memcpy(piece + offset[id], smoe_tokenizer_piece(tokenizer, id), (size_t)(offset[id + 1] - offset[id]));

  smoe_status status =
      smoe_corpus_put(file, "/tokenizer/piece", H5T_STD_U8LE, H5T_NATIVE_UINT8, piece, offset[V]);
  if (status == SMOE_OK)
    status = smoe_corpus_put(file, "/tokenizer/piece_offset", H5T_STD_I64LE, H5T_NATIVE_INT64, offset, V + 1);
  if (status == SMOE_OK)
    status = smoe_corpus_put(file, "/tokenizer/model", H5T_STD_U8LE, H5T_NATIVE_UINT8, about->model,
                             (int64_t)about->model_bytes);
  smoe_free(piece);
  smoe_free(offset);
  return status;
}

smoe_status smoe_corpus_vector_size(hid_t file, const char *name, hid_t type, int64_t n_min, int64_t *n) {
  int n_dims;
  int64_t shape[SMOE_H5_DIMS];
  SMOE_TRY(smoe_h5_shape(file, name, &n_dims, shape));
  SMOE_CHECK(n_dims == 1 && shape[0] >= n_min, SMOE_ERR_FORMAT,
             "'%s' of '%s' should have one dimension and at least %lld elements", name, smoe_h5_path(file),
             (long long)n_min);
  *n = shape[0];
  return smoe_h5_expect(file, name, type, 1, shape);
}

smoe_status smoe_corpus_get_model(hid_t file, char **model, size_t *bytes) {
  if (!smoe_h5_exists(file, "/tokenizer/model")) return SMOE_OK;
  int64_t n = 0;
  SMOE_TRY(smoe_corpus_vector_size(file, "/tokenizer/model", H5T_STD_U8LE, 1, &n));
  *model = smoe_alloc((size_t)n);
  *bytes = (size_t)n;
  return smoe_h5_read(file, "/tokenizer/model", H5T_NATIVE_UINT8, *model, 0, n);
}

bool smoe_corpus_first_of_node(const smoe_group *group) {
  smoe_nodes nodes;
  smoe_nodes_find(&nodes, group, 0);
  const bool first = nodes.rank[nodes.first[nodes.node[group->rank]]] == group->rank;
  smoe_nodes_release(&nodes);
  return first;
}
