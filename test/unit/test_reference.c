/* configs/reference.yml names every key there is, and every file in configs/ can be used. */
#include <glob.h>
#include <stdio.h>
#include <string.h>

#include "harness.h"
#include "stablemoe/arena.h"
#include "stablemoe/family.h"
#include "stablemoe/router.h"

static smoe_config *create(void) {
  const size_t n_sets = smoe_model_keysets(NULL);
  const smoe_keyset **sets = smoe_alloc(n_sets * sizeof *sets);
  smoe_model_keysets(sets);
  smoe_config *config = smoe_config_create(sets, n_sets);
  smoe_free(sets);
  return config;
}

static char *read_file(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) return smoe_strdup("");
  char *text = smoe_alloc(1 << 20);
  fread(text, 1, (1 << 20) - 1, file);
  fclose(file);
  return text;
}

static void test_reference(const char *path) {
  smoe_config *config = create();
  char *expected = smoe_config_text(config, true), *text = read_file(path);
  size_t i = 0, line = 1;
  while (text[i] && text[i] == expected[i]) line += text[i++] == '\n';
  CHECK(text[i] == expected[i],
        "%s differs from the table of keys in line %zu; `test_reference` without an argument prints what it "
        "should be",
        path, line);
  smoe_free(expected);
  smoe_free(text);
  smoe_config_destroy(config);
}

/* A file must load, resolve, and name a routing method there is; its text must repeat it. */
static void test_file(const char *path) {
  smoe_config *config = create(), *copy = create();
  CHECK(smoe_config_load(config, path) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_config_resolve(config) == SMOE_OK, "%s: %s", path, smoe_last_error());
  CHECK(smoe_model_check(config) == SMOE_OK, "%s: %s", path, smoe_last_error());
  char *text = smoe_config_text(config, false);
  CHECK(smoe_config_parse(copy, text, path) == SMOE_OK, "%s", smoe_last_error());
  CHECK(smoe_config_resolve(copy) == SMOE_OK, "%s", smoe_last_error());
  char *again = smoe_config_text(copy, false);
  CHECK(strcmp(text, again) == 0, "%s", path);
  smoe_free(text);
  smoe_free(again);
  smoe_config_destroy(config);
  smoe_config_destroy(copy);
}

int main(int argc, char **argv) {
  if (argc < 2) {
    smoe_config *config = create();
    char *text = smoe_config_text(config, true);
    fputs(text, stdout);
    smoe_free(text);
    smoe_config_destroy(config);
    return 0;
  }
  char *path = smoe_sprintf("%s/reference.yml", argv[1]);
  test_reference(path);
  smoe_free(path);

  glob_t files = {0};
  char *pattern = smoe_sprintf("%s/*.yml", argv[1]), *deeper = smoe_sprintf("%s/*/*.yml", argv[1]);
  glob(pattern, 0, NULL, &files);
  glob(deeper, GLOB_APPEND, NULL, &files);
  CHECK(files.gl_pathc >= 4, "%zu files in %s", files.gl_pathc, argv[1]);
  for (size_t i = 0; i < files.gl_pathc; i++) test_file(files.gl_pathv[i]);
  globfree(&files);
  smoe_free(pattern);
  smoe_free(deeper);
  return test_verdict("test_reference");
}
