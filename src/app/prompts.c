#include "prompts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/utf8.h"

/* Texts one after the other, each with its NUL. */
typedef struct storage {
  char *text;
  size_t bytes;
} storage;

static smoe_status add(storage *all, const char *text, size_t bytes, const char *where) {
  const size_t valid = smoe_utf8_prefix(text, bytes);
  SMOE_CHECK(valid == bytes, SMOE_ERR_CONFIG, "%s is not UTF-8 text: byte %zu (counted from 0) is 0x%02X",
             where, valid, (unsigned char)text[valid]);
  all->text = smoe_realloc(all->text, all->bytes + bytes + 1);
  memcpy(all->text + all->bytes, text, bytes);
  all->text[all->bytes + bytes] = '\0';
  all->bytes += bytes + 1;
  return SMOE_OK;
}

static smoe_status add_words(storage *all, const smoe_words *words) {
  for (size_t i = 0; i < words->n; i++) {
    SMOE_CHECK(words->word[i][0], SMOE_ERR_CONFIG,
               "the prompt is empty: leave --prompt out to begin a new document");
    SMOE_TRY(add(all, words->word[i], strlen(words->word[i]), "the prompt"));
  }
  return SMOE_OK;
}

static smoe_status add_lines(storage *all, FILE *in, const char *name) {
  char *line = NULL;
  size_t room = 0;
  smoe_status status = SMOE_OK;
  ssize_t n;
  for (size_t number = 1; status == SMOE_OK && (n = getline(&line, &room, in)) >= 0; number++) {
    while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) n--;
    char where[256];
    snprintf(where, sizeof where, "line %zu of '%.200s'", number, name);
    if (n > 0) status = add(all, line, (size_t)n, where);
  }
  free(line); /* memory of the C library */
  SMOE_TRY(status);
  SMOE_CHECK(!ferror(in), SMOE_ERR_IO, "cannot read '%s': %s", name, strerror(errno));
  return SMOE_OK;
}

static smoe_status add_file(storage *all, const char *file) {
  const size_t before = all->bytes;
  const bool standard = strcmp(file, "-") == 0;
  FILE *in = standard ? stdin : fopen(file, "r");
  SMOE_CHECK(in, SMOE_ERR_IO, "cannot open '%s': %s", file, strerror(errno));
  const smoe_status status = add_lines(all, in, standard ? "standard input" : file);
  if (!standard) fclose(in);
  SMOE_TRY(status);
  SMOE_CHECK(all->bytes > before, SMOE_ERR_CONFIG, "'%s' has no prompt: each line that is not empty is one",
             file);
  return SMOE_OK;
}

static smoe_status collect(storage *all, const smoe_words *words, const char *file) {
  SMOE_TRY(add_words(all, words));
  if (file) SMOE_TRY(add_file(all, file));
  return words->n == 0 && !file ? add(all, "", 0, "") : SMOE_OK;
}

smoe_status smoe_prompts_read(smoe_prompts *prompts, const smoe_group *group, const smoe_words *words,
                              const char *file) {
  storage all = {0};
  *prompts = (smoe_prompts){0};
  const smoe_status status = smoe_group_agree(group, group->rank == 0 ? collect(&all, words, file) : SMOE_OK);
  prompts->storage = all.text;
  SMOE_TRY(status);
  uint64_t bytes = all.bytes;
  smoe_group_broadcast(group, &bytes, sizeof bytes, 0);
  if (group->rank != 0) prompts->storage = smoe_alloc(bytes);
  smoe_group_broadcast(group, prompts->storage, bytes, 0);
  for (size_t at = 0; at < bytes; at += strlen(prompts->storage + at) + 1) {
    prompts->text = smoe_realloc(prompts->text, (prompts->n + 1) * sizeof *prompts->text);
    prompts->text[prompts->n++] = prompts->storage + at;
  }
  return SMOE_OK;
}

void smoe_prompts_release(smoe_prompts *prompts) {
  smoe_free(prompts->text);
  smoe_free(prompts->storage);
  *prompts = (smoe_prompts){0};
}
