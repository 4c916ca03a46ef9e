/* The man page, from the tables of the subcommands and of the configuration keys. */
#include <string.h>

#include "app.h"
#include "stablemoe/arena.h"
#include "stablemoe/family.h"
#include "stablemoe/router.h"

/* Text in roff: a line per sentence would be usual, and is no need; nothing in it may be taken for a request. */
static void print_text(const char *text, FILE *out) {
  bool begins = true;
  for (const char *s = text; *s; s++) {
    if (begins && (*s == '.' || *s == '\'')) fputs("\\&", out);
    begins = *s == '\n';
    if (strncmp(s, "\n\n", 2) == 0) {
      fputs("\n.PP\n", out);
      s++;
    } else if (*s == '\\') {
      fputs("\\e", out);
    } else if (*s == '-') {
      fputs("\\-", out);
    } else if (*s == '`') {
      fputs("\\(ga", out);
    } else if (*s == '\'') {
      fputs("\\(aq", out);
    } else if (*s == '~') {
      fputs("\\(ti", out);
    } else if (*s == '^') {
      fputs("\\(ha", out);
    } else {
      fputc(*s, out);
    }
  }
}

/* What a number may be. */
static void print_bounds(const smoe_option *o, FILE *out) {
  const bool whole = o->kind == SMOE_OPTION_INT;
  if (!whole && o->kind != SMOE_OPTION_REAL) return;
  fprintf(out, " A %s from %.15g", whole ? "whole number" : "number", o->min);
  if (o->max < 0x1p62)
    fprintf(out, " to %.15g.", o->max);
  else
    fputs(" on.", out);
}

static void print_option(const smoe_option *o, FILE *out) {
  char choices[256];
  const char *value = smoe_option_value(o, choices, sizeof choices);
  fputs(".TP\n", out);
  if (o->letter) fprintf(out, "\\fB\\-%c\\fR, ", o->letter);
  fputs("\\fB\\-\\-", out);
  print_text(o->name, out);
  fputs("\\fR", out);
  if (value) {
    fputs(" \\fI", out);
    print_text(value, out);
    fputs("\\fR", out);
  }
  fputc('\n', out);
  print_text(o->help, out);
  fputc('.', out);
  print_bounds(o, out);
  fputc('\n', out);
}

static void print_usage(const smoe_command *c, FILE *out) {
  fprintf(out, "%s\\fBstablemoe %s\\fR ", c->serial || c->bare ? "" : "mpirun \\-n \\fIRANKS\\fR ", c->name);
  print_text(c->arguments, out);
  fputs(" [options]\n", out);
}

static void print_command(const smoe_command *c, FILE *out) {
  fprintf(out, ".SS %s\n", c->name);
  print_usage(c, out);
  fputs(".PP\n", out);
  print_text(c->text ? c->text : c->title, out);
  fputc('\n', out);
  for (size_t i = 0; i < c->n_options; i++) print_option(&c->options[i], out);
  if (c->after) {
    fputs(".PP\n", out);
    print_text(c->after, out);
    fputc('\n', out);
  }
}

/* What a number may be, or a choice; nothing for a text. */
static void print_range(const smoe_key *key, FILE *out) {
  if (key->kind == SMOE_KEY_BOOL) fputs(" (true or false)", out);
  if (key->kind == SMOE_KEY_CHOICE) {
    fputs(" (", out);
    for (size_t i = 0; key->choices[i]; i++) {
      fputs(i == 0 ? "" : key->choices[i + 1] ? ", " : " or ", out);
      print_text(key->choices[i], out);
    }
    fputc(')', out);
  }
  if (key->unit && key->unit[0]) {
    fputs(" (", out);
    print_text(key->unit, out);
    fputc(')', out);
  }
}

static void print_key(const smoe_key *key, FILE *out) {
  fputs(".TP\n\\fB", out);
  print_text(key->name, out);
  fputs("\\fR = ", out);
  print_text(key->def[0] ? key->def : "\"\"", out);
  fputc('\n', out);
  print_text(key->help, out);
  print_range(key, out);
  fputc('\n', out);
}

static void print_keys(FILE *out) {
  const size_t n = smoe_model_keysets(NULL);
  const smoe_keyset **sets = smoe_alloc(n * sizeof *sets);
  smoe_model_keysets(sets);
  fputs(".SH CONFIGURATION KEYS\n", out);
  print_text("A configuration is a YAML file of sections and keys; \"section.key\" below is key in section. "
             "Each key is shown with its default. Option -P of train and bench sets single ones.",
             out);
  fputc('\n', out);
  for (size_t s = 0; s < n; s++)
    for (size_t k = 0; k < sets[s]->n_keys; k++) print_key(&sets[s]->keys[k], out);
  smoe_free(sets);
  fputs(".SS Routing methods (router.method)\n", out);
  for (size_t i = 0; smoe_router_methods[i]; i++) {
    fputs(".TP\n\\fB", out);
    print_text(smoe_router_methods[i]->name, out);
    fputs("\\fR\n", out);
    print_text(smoe_router_methods[i]->title, out);
    fputc('\n', out);
  }
}

static void print_pairs(const char *title, const char *const (*pairs)[2], FILE *out) {
  fprintf(out, ".SH %s\n", title);
  for (; (*pairs)[0]; pairs++) {
    fputs(".TP\n\\fB", out);
    print_text((*pairs)[0], out);
    fputs("\\fR\n", out);
    print_text((*pairs)[1], out);
    fputc('\n', out);
  }
}

static const char *const FILES[][2] = {
    {"used.yml", "in the run directory: the whole configuration; it repeats the run."},
    {"log.txt, metrics.csv", "what the run said, and a line of figures for every update."},
    {"checkpoints/step-<update>.h5, checkpoints/latest", "checkpoints (HDF5), and the newest."},
    {"routing/step-<update>.h5", "routing logs (HDF5): where tokens went."},
    {"lock", "while a run writes there: its process, host and job."},
    {"stop",
     "made by you in the run directory, ends the run after the update in progress, with a checkpoint."},
    {NULL, NULL},
};

static const char *const ENVIRONMENT[][2] = {
    {"OMP_NUM_THREADS", "threads of each rank, where run.threads is 0; 1 where it is not set."},
    {"OMPI_MCA_mpi_yield_when_idle=1", "for more ranks than cores with Open MPI: waiting ranks give way."},
    {NULL, NULL},
};

static const char *const EXITS[][2] = {
    {"0", "fine"},
    {"2", "usage or configuration"},
    {"3", "the file system said no"},
    {"4", "a file is not what it should be"},
    {"5", "more memory needed than there is"},
    {"6", "a loss or gradient is not finite"},
    {"7", "MPI failed, or ranks disagree"},
    {"8", "a bug"},
    {"75", "stopped by a signal or run.max_minutes, after a checkpoint: start again with --resume"},
    {"76", "stopped by hand (a file stop, Ctrl-C), after a checkpoint: --resume continues"},
    {NULL, NULL},
};

static smoe_status run(const smoe_group *group, const void *values, const smoe_arguments *arguments) {
  FILE *out = stdout;
  fputs(".TH STABLEMOE 1 \"\" \"StableMoE " SMOE_VERSION "\" \"User Commands\"\n"
        ".SH NAME\nstablemoe \\- two\\-stage Mixture\\-of\\-Experts language\\-model training over MPI\n"
        ".SH SYNOPSIS\n.nf\n",
        out);
  for (size_t i = 0; smoe_commands[i]; i++) print_usage(smoe_commands[i], out);
  fputs("\\fBstablemoe\\fR \\-\\-version | \\-\\-help\n.fi\n.SH DESCRIPTION\n", out);
  print_text("stablemoe trains Mixture-of-Experts language models with expert parallelism: each rank holds "
             "the backbone and a share of the experts, and tokens travel to their experts by MPI. Stage 1 "
             "learns the routing and distils it into a small router; stage 2 freezes that router and trains "
             "the rest (StableMoE, Dai et al. 2022). Other routing methods are there to compare. Results do "
             "not depend on the number of ranks.",
             out);
  fputs("\n.SH SUBCOMMANDS\nEvery subcommand also takes \\fB\\-h\\fR, \\fB\\-\\-help\\fR.\n", out);
  for (size_t i = 0; smoe_commands[i]; i++) print_command(smoe_commands[i], out);
  print_keys(out);
  print_pairs("FILES", FILES, out);
  print_pairs("ENVIRONMENT", ENVIRONMENT, out);
  print_pairs("EXIT STATUS", EXITS, out);
  fputs(".SH EXAMPLES\n.nf\n", out);
  for (size_t i = 0; smoe_commands[i]; i++) {
    if (!smoe_commands[i]->example) continue;
    print_text(smoe_commands[i]->example, out);
    fputc('\n', out);
  }
  fputs(".fi\n", out);
  return SMOE_OK;
}

const smoe_command smoe_command_man = {
    .name = "man",
    .arguments = "",
    .title = "the man page",
    .text = "Print the man page of the program (roff), with all subcommands, options and configuration keys: "
            "`stablemoe man | man -l -` shows it. `meson install` installs it.",
    .bare = true,
    .usage = "no argument",
    .min_args = 0,
    .max_args = 0,
    .run = run,
};
