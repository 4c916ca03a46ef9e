/** The subcommands and their options: one table each, from which everything follows.
 *
 *  A subcommand is a smoe_command in the file of its name, and a line in the array in options.c.
 *  Parsing, --help, the man page (`stablemoe man`) and the completions of shells (`stablemoe
 *  completion`) all read the same tables. -h and --help are there for every subcommand by themselves.
 */
#ifndef STABLEMOE_APP_OPTIONS_H
#define STABLEMOE_APP_OPTIONS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "stablemoe/group.h"
#include "stablemoe/status.h"

/** What an option's value is, and what it is kept as in the struct of its subcommand. */
typedef enum smoe_option_kind {
  SMOE_OPTION_FLAG,   /**< bool: true where it is given; takes no value */
  SMOE_OPTION_INT,    /**< int64_t in [min, max] */
  SMOE_OPTION_REAL,   /**< double in [min, max] */
  SMOE_OPTION_CHOICE, /**< int: index into choices */
  SMOE_OPTION_TEXT,   /**< const char * into argv */
  SMOE_OPTION_FILE,   /**< the same; shells complete it with files */
  SMOE_OPTION_OUTPUT, /**< the same, of a file to be written: its directory is made before anything is done */
  SMOE_OPTION_WORDS,  /**< smoe_words: may be given several times */
  SMOE_OPTION_FILES,  /**< smoe_words: may be given several times; each value is a word and at most two that
                         follow it and begin no option, as `value` has them, absent ones in brackets. Three words
                         each, NULL for one that is absent */
  SMOE_OPTION_KEYS    /**< smoe_words of KEY=VALUE; shells complete it with configuration keys */
} smoe_option_kind;

/** Values of an option that may be repeated, in the order of the command line. */
typedef struct smoe_words {
  const char **word; /**< [n] into argv; of SMOE_OPTION_FILES some are NULL */
  size_t n;
} smoe_words;

typedef struct smoe_option {
  char letter;      /**< of the short form; 0: none. h is taken */
  const char *name; /**< of the long form, without dashes */
  smoe_option_kind kind;
  size_t offset;              /**< of the value in the subcommand's struct */
  const char *value;          /**< what help calls the value: "N"; NULL for flags; for choices NULL: a|b */
  const char *help;           /**< what it does, and its default; without a full stop */
  double min, max;            /**< of numbers, both inclusive; whole ones within 2^53 or INT64_MAX */
  const char *const *choices; /**< NULL-terminated, for CHOICE */
} smoe_option;

/** What remains of the command line beside the options. */
typedef struct smoe_arguments {
  const char *const *word; /**< [n] */
  int n;
} smoe_arguments;

/** What a shell offers for the arguments. */
typedef enum smoe_argument_kind {
  SMOE_ARGUMENT_FILE,
  SMOE_ARGUMENT_DIRECTORY,
  SMOE_ARGUMENT_CHOICE
} smoe_argument_kind;

typedef struct smoe_command {
  const char *name;
  const char *arguments; /**< as usage shows them: "CONFIG"; "" for none */
  const char *title;     /**< one line for the list of subcommands */
  const char *text;      /**< paragraphs at the head of its help, apart by an empty line; wrapped there */
  const char *after;     /**< paragraphs below the options; NULL: none */
  const char *example;   /**< one command line for the man page; NULL: none */

  bool serial; /**< rank 0 alone runs it, the others wait */
  bool bare;   /**< runs without MPI where no launcher started it (and then on rank 0 alone) */

  const char *usage;      /**< "one CONFIG": for the report where arguments are too many or too few */
  const char *missing;    /**< "CONFIG is missing": the report where they are too few; NULL: as usage says */
  int min_args, max_args; /**< number of arguments; max_args -1: any number */
  smoe_argument_kind argument;
  const char *const *argument_choices; /**< NULL-terminated, for SMOE_ARGUMENT_CHOICE */

  const smoe_option *options;
  size_t n_options;
  size_t values_bytes;  /**< of the struct that the options fill */
  const void *defaults; /**< such a struct; NULL: all zero */

  /** Print what its help has below all else; NULL: nothing. Local. */
  void (*more_help)(FILE *out);

  /** Check options and arguments against each other, before anything is done; NULL: nothing. Local. */
  smoe_status (*check)(const void *values, const smoe_arguments *arguments);

  /** What has to be done before MPI starts, which can take long; NULL: nothing. Local. */
  void (*early)(int argc, char **argv);

  /** Do it. Collective over group; the status is agreed on all ranks. Local on rank 0 for serial ones,
   *  and bare ones, which must not use the group.
   */
  smoe_status (*run)(const smoe_group *group, const void *values, const smoe_arguments *arguments);
} smoe_command;

/** What a smoe_command says of its options: their table, and the type of the struct that they fill. */
#define SMOE_COMMAND_OPTIONS(table, type)                                                                    \
  .options = (table), .n_options = sizeof(table) / sizeof *(table), .values_bytes = sizeof(type)

/** All subcommands, in the order of help; NULL-terminated. */
extern const smoe_command *const smoe_commands[];

/** The subcommand of that name; NULL where there is none. Local. */
const smoe_command *smoe_command_find(const char *name);

/** A command line as it was understood. */
typedef struct smoe_invocation {
  bool help;    /**< help is asked for, and nothing else counts */
  void *values; /**< the subcommand's struct */
  smoe_arguments arguments;
} smoe_invocation;

/** Read a command line; argv[0] is the subcommand's name, and argv is permuted.
 *
 *  Local.
 *  Errors:  SMOE_ERR_CONFIG naming option or argument, and what is expected.
 */
smoe_status smoe_command_parse(const smoe_command *command, int argc, char **argv, smoe_invocation *out);

/** Make the directories of the files that are to be written (SMOE_OPTION_OUTPUT), where they are missing.
 *
 *  Local. Errors:  SMOE_ERR_IO where one cannot be made, or cannot be written to.
 */
smoe_status smoe_command_make_directories(const smoe_command *command, const smoe_invocation *invocation);

/** Give back what parsing took; fine after a failed one. Local. */
void smoe_invocation_release(const smoe_command *command, smoe_invocation *invocation);

/** Print the help of a subcommand. Local. */
void smoe_command_help(const smoe_command *command, FILE *out);

/** Print the list of subcommands. Local. */
void smoe_commands_help(FILE *out);

/** Print text in lines of at most `width` columns, each indented by `indent`; an empty line of the text
 *  is one of the output. column: where the cursor is already, for the first line. Local.
 */
void smoe_print_wrapped(FILE *out, const char *text, int column, int indent, int width);

/** Whether an option may be given several times: its value is smoe_words. Local. */
bool smoe_option_repeats(const smoe_option *option);

/** What help calls an option's value: its word, or its choices ("a|b"); NULL for a flag.
 *
 *  Local. buffer  out  [n] where choices are put together
 */
const char *smoe_option_value(const smoe_option *option, char *buffer, size_t n);

#endif
