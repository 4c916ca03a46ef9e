/* Completions of shells, from the tables of the subcommands and of the configuration keys. */
#include <string.h>

#include "app.h"
#include "stablemoe/arena.h"
#include "stablemoe/family.h"
#include "stablemoe/router.h"

static const char *const SHELLS[] = {"bash", "zsh", "fish", NULL};

/* ---- what all shells need ---- */

static bool takes_file(const smoe_option *o) {
  return o->kind == SMOE_OPTION_FILE || o->kind == SMOE_OPTION_OUTPUT;
}

/* Keys whose text is a path: their values are completed with files. */
static bool is_path(const smoe_key *key) {
  static const char *const names[] = {"run.directory", "data.corpus", "router.hash.model",
                                      "router.replay.log", NULL};
  for (size_t i = 0; names[i]; i++)
    if (strcmp(names[i], key->name) == 0) return true;
  return false;
}

/* Call `each` for every configuration key. */
static void for_keys(void (*each)(const smoe_key *key, FILE *out), FILE *out) {
  const size_t n = smoe_model_keysets(NULL);
  const smoe_keyset **sets = smoe_alloc(n * sizeof *sets);
  smoe_model_keysets(sets);
  for (size_t s = 0; s < n; s++)
    for (size_t k = 0; k < sets[s]->n_keys; k++) each(&sets[s]->keys[k], out);
  smoe_free(sets);
}

/* The values that a key allows, where they can be listed: `before` in front of each. */
static bool print_values(const smoe_key *key, const char *before, FILE *out) {
  if (strcmp(key->name, "router.method") == 0) {
    for (size_t i = 0; smoe_router_methods[i]; i++)
      fprintf(out, "%s%s", before, smoe_router_methods[i]->name);
  } else if (key->kind == SMOE_KEY_BOOL) {
    fprintf(out, "%strue%sfalse", before, before);
  } else if (key->kind == SMOE_KEY_CHOICE) {
    for (size_t i = 0; key->choices[i]; i++) fprintf(out, "%s%s", before, key->choices[i]);
  } else {
    return false;
  }
  return true;
}

static void print_words(const char *const *words, const char *before, FILE *out) {
  for (size_t i = 0; words && words[i]; i++) fprintf(out, "%s%s", before, words[i]);
}

/* Text inside single quotes of a shell; characters of `escape` get a backslash. */
static void print_quoted(const char *text, const char *escape, FILE *out) {
  for (const char *s = text; *s; s++) {
    if (*s == '\'')
      fputs("'\\''", out);
    else if (strchr(escape, *s))
      fprintf(out, "\\%c", *s);
    else
      fputc(*s, out);
  }
}

/* ---- bash ---- */

static void bash_key(const smoe_key *key, FILE *out) {
  fprintf(out, " %s=", key->name);
}

static void bash_key_values(const smoe_key *key, FILE *out) {
  if (is_path(key)) {
    fprintf(out, "    %s) kind=file ;;\n", key->name);
  } else if (key->kind == SMOE_KEY_BOOL || key->kind == SMOE_KEY_CHOICE ||
             strcmp(key->name, "router.method") == 0) {
    fprintf(out, "    %s) words='", key->name);
    print_values(key, " ", out);
    fputs("' ;;\n", out);
  }
}

/* One case: what follows the option, "train:-P | train:--set) ... ;;". */
static void bash_option(const smoe_command *c, const smoe_option *o, FILE *out) {
  if (o->kind == SMOE_OPTION_FLAG) return;
  fputs("    ", out);
  if (o->letter) fprintf(out, "%s:-%c | ", c->name, o->letter);
  fprintf(out, "%s:--%s) ", c->name, o->name);
  if (o->kind == SMOE_OPTION_KEYS) fputs("kind=keys", out);
  if (takes_file(o)) fputs("kind=file", out);
  if (o->kind == SMOE_OPTION_CHOICE) {
    fputs("words='", out);
    print_words(o->choices, " ", out);
    fputs("'", out);
  } else if (o->kind != SMOE_OPTION_KEYS && !takes_file(o)) {
    fputs("kind=none", out);
  }
  fputs(" ;;\n", out);
}

/* One case: what a subcommand takes, "train) options='...' kind=file ;;". */
static void bash_command(const smoe_command *c, FILE *out) {
  fprintf(out, "    %s) options='", c->name);
  for (size_t i = 0; i < c->n_options; i++) {
    if (c->options[i].letter) fprintf(out, " -%c", c->options[i].letter);
    fprintf(out, " --%s", c->options[i].name);
  }
  fputs(" -h --help' ", out);
  if (c->argument == SMOE_ARGUMENT_CHOICE) {
    fputs("arguments='", out);
    print_words(c->argument_choices, " ", out);
    fputs("' ;;\n", out);
  } else {
    fprintf(out, "kind=%s ;;\n",
            c->max_args == 0                         ? "none"
            : c->argument == SMOE_ARGUMENT_DIRECTORY ? "directory"
                                                     : "file");
  }
}

static void print_bash(FILE *out) {
  fputs("# bash completion for stablemoe; made by `stablemoe completion bash`\n"
        "_stablemoe() {\n"
        "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
        "  local command=${COMP_WORDS[1]} key='' words='' options='' arguments='' kind=''\n"
        "  # bash takes KEY=VALUE for three words.\n"
        "  if [[ $prev == '=' ]]; then\n"
        "    key=${COMP_WORDS[COMP_CWORD-2]}\n"
        "  elif [[ $cur == '=' ]]; then\n"
        "    key=$prev cur=''\n"
        "  fi\n"
        "  COMPREPLY=()\n"
        "  if [[ $COMP_CWORD -le 1 ]]; then\n"
        "    mapfile -t COMPREPLY < <(compgen -W '",
        out);
  for (size_t i = 0; smoe_commands[i]; i++) fprintf(out, "%s ", smoe_commands[i]->name);
  fputs("--help --version' -- \"$cur\")\n"
        "    return\n"
        "  fi\n"
        "  [[ -z $key ]] || case $key in\n",
        out);
  for_keys(bash_key_values, out);
  fputs("    *) kind=none ;;\n"
        "  esac\n"
        "  [[ -n $key ]] || case $command:$prev in\n",
        out);
  for (size_t i = 0; smoe_commands[i]; i++)
    for (size_t k = 0; k < smoe_commands[i]->n_options; k++)
      bash_option(smoe_commands[i], &smoe_commands[i]->options[k], out);
  fputs("  esac\n"
        "  [[ -n $key$words$kind ]] || case $command in\n",
        out);
  for (size_t i = 0; smoe_commands[i]; i++) bash_command(smoe_commands[i], out);
  fputs("  esac\n"
        "  if [[ $cur == -* && -n $options ]]; then\n"
        "    words=$options kind=''\n"
        "  elif [[ -n $arguments ]]; then\n"
        "    words=$arguments\n"
        "  fi\n"
        "  case $kind in\n"
        "    keys)\n"
        "      compopt -o nospace 2>/dev/null\n"
        "      words='",
        out);
  for_keys(bash_key, out);
  fputs("' ;;\n"
        "    file | directory)\n"
        "      compopt -o filenames 2>/dev/null\n"
        "      local only=-f\n"
        "      [[ $kind == file ]] || only=-d\n"
        "      mapfile -t COMPREPLY < <(compgen $only -- \"$cur\")\n"
        "      return ;;\n"
        "  esac\n"
        "  mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n"
        "}\n"
        "complete -F _stablemoe stablemoe\n",
        out);
}

/* ---- zsh ---- */

static void zsh_key(const smoe_key *key, FILE *out) {
  fprintf(out, "    '%s:", key->name);
  print_quoted(key->help, "\\:", out);
  fputs("'\n", out);
}

static void zsh_key_values(const smoe_key *key, FILE *out) {
  if (is_path(key)) {
    fprintf(out, "      %s) _files ;;\n", key->name);
  } else if (key->kind == SMOE_KEY_BOOL || key->kind == SMOE_KEY_CHOICE ||
             strcmp(key->name, "router.method") == 0) {
    fprintf(out, "      %s) compadd --", key->name);
    print_values(key, " ", out);
    fputs(" ;;\n", out);
  }
}

static void zsh_option(const smoe_option *o, FILE *out) {
  const bool repeats = smoe_option_repeats(o);
  fputs("        ", out);
  if (repeats) fputs("'*'", out);
  if (o->letter && !repeats) fprintf(out, "'(-%c --%s)'", o->letter, o->name);
  if (o->letter)
    fprintf(out, "{-%c,--%s}'[", o->letter, o->name);
  else
    fprintf(out, "'--%s[", o->name);
  print_quoted(o->help, "\\[]:", out);
  fputc(']', out);
  if (o->kind != SMOE_OPTION_FLAG) {
    fprintf(out, ":%s:", o->value ? o->value : o->name);
    if (o->kind == SMOE_OPTION_KEYS) fputs("_stablemoe_keys", out);
    if (takes_file(o)) fputs("_files", out);
    if (o->kind == SMOE_OPTION_CHOICE) {
      fputc('(', out);
      print_words(o->choices, " ", out);
      fputc(')', out);
    }
  }
  fputs("' \\\n", out);
}

static void zsh_command(const smoe_command *c, FILE *out) {
  fprintf(out, "    %s)\n      _arguments \\\n", c->name);
  for (size_t i = 0; i < c->n_options; i++) zsh_option(&c->options[i], out);
  fputs("        '(-h --help)'{-h,--help}'[print help]'", out);
  if (c->max_args != 0) {
    fprintf(out, " \\\n        '%s:argument:", c->max_args == 1 ? "1" : "*");
    if (c->argument == SMOE_ARGUMENT_CHOICE) {
      fputc('(', out);
      print_words(c->argument_choices, " ", out);
      fputc(')', out);
    } else {
      fputs(c->argument == SMOE_ARGUMENT_DIRECTORY ? "_files -/" : "_files", out);
    }
    fputc('\'', out);
  }
  fputs(" ;;\n", out);
}

static void print_zsh(FILE *out) {
  fputs("#compdef stablemoe\n# zsh completion for stablemoe; made by `stablemoe completion zsh`\n"
        "_stablemoe_keys() {\n  local -a keys\n  if compset -P 1 '*='; then\n"
        "    case ${IPREFIX%=} in\n",
        out);
  for_keys(zsh_key_values, out);
  fputs("    esac\n    return\n  fi\n  keys=(\n", out);
  for_keys(zsh_key, out);
  fputs("  )\n  _describe 'configuration key' keys -S '='\n}\n\n"
        "_stablemoe() {\n  local curcontext=$curcontext state line\n  local -a commands\n  commands=(\n",
        out);
  for (size_t i = 0; smoe_commands[i]; i++) {
    fprintf(out, "    '%s:", smoe_commands[i]->name);
    print_quoted(smoe_commands[i]->title, "\\:", out);
    fputs("'\n", out);
  }
  fputs("  )\n"
        "  _arguments -C '(- *)--version[print versions]' '(- *)'{-h,--help}'[print help]' \\\n"
        "    '1: :->command' '*:: :->rest'\n"
        "  case $state in\n"
        "    command) _describe 'subcommand' commands; return ;;\n"
        "    rest) ;;\n"
        "    *) return ;;\n"
        "  esac\n"
        "  case $words[1] in\n",
        out);
  for (size_t i = 0; smoe_commands[i]; i++) zsh_command(smoe_commands[i], out);
  fputs("  esac\n}\n\n_stablemoe \"$@\"\n", out);
}

/* ---- fish ---- */

static void fish_key(const smoe_key *key, FILE *out) {
  fprintf(out, "  printf '%%s\\t%%s\\n' '%s=' '", key->name);
  print_quoted(key->help, "\\", out);
  fputs("'\n", out);
}

static void fish_key_values(const smoe_key *key, FILE *out) {
  if (key->kind != SMOE_KEY_BOOL && key->kind != SMOE_KEY_CHOICE && strcmp(key->name, "router.method") != 0)
    return;
  char before[128];
  snprintf(before, sizeof before, " %s=", key->name);
  fputs("  printf '%s\\n'", out);
  print_values(key, before, out);
  fputc('\n', out);
}

static void fish_option(const smoe_command *c, const smoe_option *o, FILE *out) {
  fprintf(out, "complete -c stablemoe -n '__fish_seen_subcommand_from %s' -l %s", c->name, o->name);
  if (o->letter) fprintf(out, " -s %c", o->letter);
  if (o->kind != SMOE_OPTION_FLAG) fputs(takes_file(o) ? " -r -F" : " -x", out);
  if (o->kind == SMOE_OPTION_KEYS) fputs(" -a '(__stablemoe_keys)'", out);
  if (o->kind == SMOE_OPTION_CHOICE) {
    fputs(" -a '", out);
    print_words(o->choices, " ", out);
    fputc('\'', out);
  }
  fputs(" -d '", out);
  print_quoted(o->help, "\\", out);
  fputs("'\n", out);
}

static void fish_command(const smoe_command *c, FILE *out) {
  fprintf(out, "complete -c stablemoe -n __fish_use_subcommand -f -a %s -d '", c->name);
  print_quoted(c->title, "\\", out);
  fputs("'\n", out);
  for (size_t i = 0; i < c->n_options; i++) fish_option(c, &c->options[i], out);
  if (c->argument == SMOE_ARGUMENT_CHOICE) {
    fprintf(out, "complete -c stablemoe -n '__fish_seen_subcommand_from %s' -f -a '", c->name);
    print_words(c->argument_choices, " ", out);
    fputs("'\n", out);
  }
}

static void print_fish(FILE *out) {
  fputs("# fish completion for stablemoe; made by `stablemoe completion fish`\n"
        "function __stablemoe_keys\n",
        out);
  for_keys(fish_key, out);
  for_keys(fish_key_values, out);
  fputs("end\n"
        "complete -c stablemoe -s h -l help -d 'print help'\n"
        "complete -c stablemoe -n __fish_use_subcommand -l version -d 'print versions'\n",
        out);
  for (size_t i = 0; smoe_commands[i]; i++) fish_command(smoe_commands[i], out);
}

static smoe_status check(const void *values, const smoe_arguments *arguments) {
  for (size_t i = 0; SHELLS[i]; i++)
    if (strcmp(arguments->word[0], SHELLS[i]) == 0) return SMOE_OK;
  return SMOE_FAIL(SMOE_ERR_CONFIG, "completion: '%s' is not a shell that is known: bash, zsh or fish",
                   arguments->word[0]);
}

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  const char *shell = arguments->word[0];
  if (strcmp(shell, "bash") == 0) print_bash(stdout);
  if (strcmp(shell, "zsh") == 0) print_zsh(stdout);
  if (strcmp(shell, "fish") == 0) print_fish(stdout);
  return SMOE_OK;
}

const smoe_command smoe_command_completion = {
    .name = "completion",
    .arguments = "bash|zsh|fish",
    .title = "completion of this command line for a shell",
    .text = "Print a script that completes subcommands, options, configuration keys and files in a shell. "
            "`meson install` puts these scripts where the shells look for them.",
    .after = "To try it: source <(stablemoe completion bash) in bash, or stablemoe completion fish | source "
             "in fish; zsh wants the output as a file _stablemoe in a directory of fpath.",
    .bare = true,
    .usage = "one shell: bash, zsh or fish",
    .min_args = 1,
    .max_args = 1,
    .argument = SMOE_ARGUMENT_CHOICE,
    .argument_choices = SHELLS,
    .check = check,
    .run = run,
};
