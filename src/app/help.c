/* Help, from the tables of the subcommands. */
#include <string.h>

#include "options.h"

enum { WIDTH = 100, COLUMN_MAX = 30 };

void smoe_print_wrapped(FILE *out, const char *text, int column, int indent, int width) {
  bool begun = false; /* a word stands in this line */
  if (column == 0) column = fprintf(out, "%*s", indent, "");
  while (*text) {
    if (strncmp(text, "\n\n", 2) == 0) {
      column = fprintf(out, "\n\n%*s", indent, "") - 2;
      begun = false;
      text += 2;
      continue;
    }
    if (*text == ' ' || *text == '\n') {
      text++;
      continue;
    }
    const int n = (int)strcspn(text, " \n");
    if (begun && column + 1 + n > width) {
      column = fprintf(out, "\n%*s", indent, "") - 1;
      begun = false;
    }
    column += fprintf(out, "%s%.*s", begun ? " " : "", n, text);
    begun = true;
    text += n;
  }
  fputc('\n', out);
}

const char *smoe_option_value(const smoe_option *option, char *buffer, size_t n) {
  if (option->kind != SMOE_OPTION_CHOICE || option->value) return option->value;
  buffer[0] = '\0';
  for (size_t i = 0; option->choices[i]; i++) {
    if (i) strncat(buffer, "|", n - strlen(buffer) - 1);
    strncat(buffer, option->choices[i], n - strlen(buffer) - 1);
  }
  return buffer;
}

/* "  -o, --output FILE" */
static void name_of(const smoe_option *o, char *text, size_t n) {
  char choices[256];
  const char *value = smoe_option_value(o, choices, sizeof choices);
  if (o->letter)
    snprintf(text, n, "  -%c, --%s%s%s", o->letter, o->name, value ? " " : "", value ? value : "");
  else
    snprintf(text, n, "      --%s%s%s", o->name, value ? " " : "", value ? value : "");
}

static void print_options(const smoe_command *command, FILE *out) {
  static const smoe_option HELP = {'h', "help", SMOE_OPTION_FLAG, 0, NULL, "print this text"};
  char text[512];
  int column = 0;
  for (size_t i = 0; i <= command->n_options; i++) {
    name_of(i < command->n_options ? &command->options[i] : &HELP, text, sizeof text);
    const int n = (int)strlen(text);
    if (n > column && n <= COLUMN_MAX) column = n;
  }
  column += 3;
  for (size_t i = 0; i <= command->n_options; i++) {
    const smoe_option *o = i < command->n_options ? &command->options[i] : &HELP;
    name_of(o, text, sizeof text);
    const int n = fprintf(out, "%s", text);
    if (n > COLUMN_MAX)
      fprintf(out, "\n%*s", column, "");
    else
      fprintf(out, "%*s", column - n, "");
    smoe_print_wrapped(out, o->help, column, column, WIDTH);
  }
}

void smoe_command_help(const smoe_command *command, FILE *out) {
  const bool alone = command->serial || command->bare;
  fprintf(out, "usage: %sstablemoe %s %s%s[options]\n\n", alone ? "" : "mpirun -n RANKS ", command->name,
          command->arguments, command->arguments[0] ? " " : "");
  smoe_print_wrapped(out, command->text, 0, 0, WIDTH);
  fputc('\n', out);
  print_options(command, out);
  if (command->after) {
    fputc('\n', out);
    smoe_print_wrapped(out, command->after, 0, 0, WIDTH);
  }
  if (!command->more_help) return;
  fputc('\n', out);
  command->more_help(out);
}

void smoe_commands_help(FILE *out) {
  fputs("stablemoe: two-stage Mixture-of-Experts language-model training over MPI\n\n", out);
  for (size_t i = 0; smoe_commands[i]; i++) {
    const smoe_command *c = smoe_commands[i];
    char usage[256];
    snprintf(usage, sizeof usage, "%s%sstablemoe %s %s",
             i ? "       " : "usage: ", c->serial || c->bare ? "" : "mpirun -n R ", c->name, c->arguments);
    fprintf(out, "%-58s %s\n", usage, c->title);
  }
  fputs("       stablemoe --version | --help\n\n"
        "Every subcommand has a --help of its own; `stablemoe train --help` lists all configuration keys.\n"
        "Exit codes: 0 fine, 2 configuration, 3 file system, 4 file format, 5 memory, 6 not a number,\n"
        "7 MPI, 8 bug; after a checkpoint 75 stopped by a signal or the time limit (start again\n"
        "with --resume), 76 stopped by hand (--resume continues).\n",
        out);
}
