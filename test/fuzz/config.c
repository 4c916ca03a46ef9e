/* Configuration texts and -P assignments. What is accepted is written, read again, and the same. */
#include "stablemoe/config.h"

#include "fuzz.h"

static const smoe_keyset *const sets[] = {&smoe_settings_keys};

void fuzz_start(int *argc, char ***argv) {
  (void)argc, (void)argv;
}

void fuzz_seeds(void) {
  smoe_config *config = smoe_config_create(sets, 1);
  char *plain = smoe_config_text(config, false), *commented = smoe_config_text(config, true);
  fuzz_seed("plain", plain, strlen(plain));
  fuzz_seed("commented", commented, strlen(commented));
  FUZZ_SEED("override", "=optimizer.lr=6e-4");
  FUZZ_SEED("quoted", "run: {directory: \"a \\\"b\\\" c\", seed: 1_0}\n");
  FUZZ_SEED("dotted", "model.width: 16\nmoe: &a\n  experts: !!int 4\n");
  smoe_free(plain);
  smoe_free(commented);
  smoe_config_destroy(config);
}

void fuzz_one(const uint8_t *data, size_t size) {
  char *text = smoe_alloc(size + 1);
  if (size) memcpy(text, data, size);
  smoe_config *config = smoe_config_create(sets, 1);
  const bool override = text[0] == '=';
  const smoe_status status =
      override ? smoe_config_override(config, text + 1) : smoe_config_parse(config, text, "fuzz.yml");
  FUZZ_CHECK(status == SMOE_OK || smoe_last_error()[0]);
  if (status == SMOE_OK) {
    char *written = smoe_config_text(config, false);
    smoe_config *again = smoe_config_create(sets, 1);
    FUZZ_CHECK(smoe_config_parse(again, written, "written.yml") == SMOE_OK);
    char *twice = smoe_config_text(again, true);
    smoe_config *third = smoe_config_create(sets, 1);
    FUZZ_CHECK(smoe_config_parse(third, twice, "twice.yml") == SMOE_OK);
    char *last = smoe_config_text(third, false);
    FUZZ_CHECK(strcmp(written, last) == 0);
    if (smoe_config_resolve(config) == SMOE_OK) {
      char *resolved = smoe_config_text(config, false);
      FUZZ_CHECK(smoe_config_resolve(config) == SMOE_OK);
      char *resolved_twice = smoe_config_text(config, false);
      FUZZ_CHECK(strcmp(resolved, resolved_twice) == 0);
      smoe_free(resolved);
      smoe_free(resolved_twice);
    }
    smoe_free(written);
    smoe_free(twice);
    smoe_free(last);
    smoe_config_destroy(again);
    smoe_config_destroy(third);
  }
  smoe_config_destroy(config);
  smoe_free(text);
}
