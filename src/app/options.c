#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "stablemoe/arena.h"
#include "stablemoe/directory.h"

extern const smoe_command smoe_command_prepare;
extern const smoe_command smoe_command_train;
extern const smoe_command smoe_command_evaluate;
extern const smoe_command smoe_command_generate;
extern const smoe_command smoe_command_translate;
extern const smoe_command smoe_command_average;
extern const smoe_command smoe_command_export;
extern const smoe_command smoe_command_import;
extern const smoe_command smoe_command_route;
extern const smoe_command smoe_command_bench;
extern const smoe_command smoe_command_info;
extern const smoe_command smoe_command_doctor;
extern const smoe_command smoe_command_completion;
extern const smoe_command smoe_command_man;

const smoe_command *const smoe_commands[] = {
    &smoe_command_prepare,    &smoe_command_train,     &smoe_command_evaluate,
    &smoe_command_generate,   &smoe_command_translate, &smoe_command_average,
    &smoe_command_export,     &smoe_command_import,    &smoe_command_route,
    &smoe_command_bench,      &smoe_command_info,      &smoe_command_doctor,
    &smoe_command_completion, &smoe_command_man,       NULL,
};

const smoe_command *smoe_command_find(const char *name) {
  for (size_t i = 0; smoe_commands[i]; i++)
    if (strcmp(smoe_commands[i]->name, name) == 0) return smoe_commands[i];
  return NULL;
}

/* What getopt_long returns for option i: its letter, or a number that is none. */
enum { FIRST_LONG = 256 };

static int code_of(const smoe_command *command, size_t i) {
  return command->options[i].letter ? (unsigned char)command->options[i].letter : FIRST_LONG + (int)i;
}

/* The two tables that getopt_long wants; text and longs have room for all options and help. */
static void getopt_tables(const smoe_command *command, char *text, struct option *longs) {
  *text++ = ':'; /* tell what is unknown from what lacks its value */
  for (size_t i = 0; i < command->n_options; i++) {
    const smoe_option *o = &command->options[i];
    const bool takes = o->kind != SMOE_OPTION_FLAG;
    *longs++ = (struct option){o->name, takes ? required_argument : no_argument, NULL, code_of(command, i)};
    if (!o->letter) continue;
    *text++ = o->letter;
    if (takes) *text++ = ':';
  }
  *text++ = 'h';
  *text = '\0';
  *longs++ = (struct option){"help", no_argument, NULL, 'h'};
  *longs = (struct option){0};
}

static smoe_status set_integer(const smoe_option *o, const char *text, int64_t *value) {
  char *end;
  errno = 0;
  *value = strtoll(text, &end, 10);
  const bool fits = errno == 0 && (double)*value >= o->min && (double)*value <= o->max;
  if (*text && !*end && fits) return SMOE_OK;
  if (o->max >= 0x1p62)
    return SMOE_FAIL(SMOE_ERR_CONFIG, "--%s %s: expected a whole number from %.0f on", o->name, text, o->min);
  return SMOE_FAIL(SMOE_ERR_CONFIG, "--%s %s: expected a whole number from %.0f to %.0f", o->name, text,
                   o->min, o->max);
}

static smoe_status set_real(const smoe_option *o, const char *text, double *value) {
  char *end;
  *value = strtod(text, &end);
  SMOE_CHECK(*text && !*end && *value >= o->min && *value <= o->max, SMOE_ERR_CONFIG,
             "--%s %s: expected a number from %g to %g", o->name, text, o->min, o->max);
  return SMOE_OK;
}

static smoe_status set_choice(const smoe_option *o, const char *text, int *value) {
  char list[256] = "";
  for (int i = 0; o->choices[i]; i++) {
    if (strcmp(o->choices[i], text) == 0) {
      *value = i;
      return SMOE_OK;
    }
    const char *before = i == 0 ? "" : o->choices[i + 1] ? ", " : " or ";
    strncat(list, before, sizeof list - strlen(list) - 1);
    strncat(list, o->choices[i], sizeof list - strlen(list) - 1);
  }
  return SMOE_FAIL(SMOE_ERR_CONFIG, "--%s %s: expected %s", o->name, text, list);
}

/** Take the words after the option's first one, at most two; at least those that o->value has without brackets. getopt takes them for read when optind is behind
 *  them, whatever stood in front of the option.
 */
static smoe_status set_files(const smoe_option *o, smoe_words *words, const char *text, int argc,
                             char **argv) {
  const char *more[2] = {NULL, NULL};
  for (int i = 0; i < 2 && optind < argc && argv[optind][0] != '-'; i++) more[i] = argv[optind++];
  const char *second = strchr(o->value, ' ');
  SMOE_CHECK(more[0] || second[1] == '[', SMOE_ERR_CONFIG, "--%s %s: expected %s", o->name, text, o->value);
  words->word[words->n++] = text;
  for (int i = 0; i < 2; i++) words->word[words->n++] = more[i];
  return SMOE_OK;
}

static smoe_status set_value(const smoe_option *o, void *values, const char *text, int argc, char **argv) {
  void *at = (char *)values + o->offset;
  smoe_words *words = at;
  switch (o->kind) {
  case SMOE_OPTION_FLAG:
    *(bool *)at = true;
    break;
  case SMOE_OPTION_INT:
    return set_integer(o, text, at);
  case SMOE_OPTION_REAL:
    return set_real(o, text, at);
  case SMOE_OPTION_CHOICE:
    return set_choice(o, text, at);
  case SMOE_OPTION_FILE:
  case SMOE_OPTION_OUTPUT:
    /* Else a directory named ~ would be made. */
    SMOE_CHECK(text[0] != '~', SMOE_ERR_CONFIG,
               "--%s=%s: shells expand ~ only where a word begins with it: write --%s %s, or ./%s if that is "
               "its name",
               o->name, text, o->name, text, text);
    *(const char **)at = text;
    break;
  case SMOE_OPTION_TEXT:
    *(const char **)at = text;
    break;
  case SMOE_OPTION_FILES:
    /* Three words for one of the command line. */
    if (!words->word) words->word = smoe_alloc(3 * (size_t)argc * sizeof *words->word);
    return set_files(o, words, text, argc, argv);
  case SMOE_OPTION_WORDS:
  case SMOE_OPTION_KEYS:
    /* No command line has more values than words. */
    if (!words->word) words->word = smoe_alloc((size_t)argc * sizeof *words->word);
    words->word[words->n++] = text;
    break;
  }
  return SMOE_OK;
}

static smoe_status check_arguments(const smoe_command *command, const smoe_arguments *arguments) {
  const char *name = command->name;
  if (arguments->n < command->min_args && command->missing)
    return SMOE_FAIL(SMOE_ERR_CONFIG, "%s: %s; see %s --help", name, command->missing, name);
  SMOE_CHECK(arguments->n >= command->min_args, SMOE_ERR_CONFIG, "%s takes %s; see %s --help", name,
             command->usage, name);
  SMOE_CHECK(command->max_args < 0 || arguments->n <= command->max_args, SMOE_ERR_CONFIG,
             "%s takes %s, and got '%s' too; see %s --help", name, command->usage,
             arguments->word[arguments->n - 1], name);
  return SMOE_OK;
}

/* What getopt_long returned no option for. word: the one it stands behind now, which of letters in a row
 * ("-nx") may be the one before; those it names in optopt.
 */
static smoe_status refuse_option(const char *name, int code, const char *word) {
  if (code == ':')
    return SMOE_FAIL(SMOE_ERR_CONFIG, "%s: option '%s' lacks its value; see %s --help", name, word, name);
  const bool is_long = optopt == 0 || optopt >= FIRST_LONG || strchr(word, '=');
  if (is_long && optopt)
    return SMOE_FAIL(SMOE_ERR_CONFIG, "%s: option '%s' takes no value; see %s --help", name, word, name);
  const char letter[] = {'-', (char)optopt, '\0'};
  return SMOE_FAIL(SMOE_ERR_CONFIG, "%s: option '%s' is unknown; see %s --help", name,
                   is_long ? word : letter, name);
}

static smoe_status parse_options(const smoe_command *command, int argc, char **argv, const char *text,
                                 const struct option *longs, smoe_invocation *out) {
  optind = 1;
  opterr = 0;
  for (int c; (c = getopt_long(argc, argv, text, longs, NULL)) != -1;) {
    out->help = c == 'h';
    if (out->help) return SMOE_OK;
    size_t i = 0;
    while (i < command->n_options && code_of(command, i) != c) i++;
    if (i == command->n_options) return refuse_option(command->name, c, argv[optind - 1]);
    SMOE_TRY(set_value(&command->options[i], out->values, optarg, argc, argv));
  }
  out->arguments = (smoe_arguments){(const char *const *)(argv + optind), argc - optind};
  SMOE_TRY(check_arguments(command, &out->arguments));
  return command->check ? command->check(out->values, &out->arguments) : SMOE_OK;
}

smoe_status smoe_command_parse(const smoe_command *command, int argc, char **argv, smoe_invocation *out) {
  *out = (smoe_invocation){.values = smoe_alloc(command->values_bytes + 1)};
  if (command->defaults) memcpy(out->values, command->defaults, command->values_bytes);
  char *text = smoe_alloc(2 * command->n_options + 3);
  struct option *longs = smoe_alloc((command->n_options + 2) * sizeof *longs);
  getopt_tables(command, text, longs);
  const smoe_status status = parse_options(command, argc, argv, text, longs, out);
  smoe_free(text);
  smoe_free(longs);
  return status;
}

bool smoe_option_repeats(const smoe_option *option) {
  return option->kind == SMOE_OPTION_WORDS || option->kind == SMOE_OPTION_KEYS ||
         option->kind == SMOE_OPTION_FILES;
}

smoe_status smoe_command_make_directories(const smoe_command *command, const smoe_invocation *invocation) {
  for (size_t i = 0; i < command->n_options; i++) {
    const smoe_option *o = &command->options[i];
    if (o->kind != SMOE_OPTION_OUTPUT) continue;
    const char *file = *(const char *const *)(const void *)((const char *)invocation->values + o->offset);
    if (file && *file) SMOE_TRY(smoe_directory_make_for(file));
  }
  return SMOE_OK;
}

void smoe_invocation_release(const smoe_command *command, smoe_invocation *invocation) {
  for (size_t i = 0; i < command->n_options && invocation->values; i++) {
    const smoe_option *o = &command->options[i];
    if (!smoe_option_repeats(o)) continue;
    smoe_free(((smoe_words *)(void *)((char *)invocation->values + o->offset))->word);
  }
  smoe_free(invocation->values);
  *invocation = (smoe_invocation){0};
}
