/** The texts to continue: from the command line, a file or standard input. */
#ifndef STABLEMOE_APP_PROMPTS_H
#define STABLEMOE_APP_PROMPTS_H

#include "options.h"

typedef struct smoe_prompts {
  char **text; /**< [n], NUL-terminated UTF-8 */
  size_t n;
  char *storage; /**< what the texts stand in */
} smoe_prompts;

/** Collect the prompts: those of the command line, then every line of the file that is not empty.
 *
 *  Collective over group: rank 0 reads, because standard input is its alone.
 *
 *  words  in  of the command line
 *  file   in  "-": standard input; NULL: none
 *
 *  Neither words nor file: one empty prompt, the beginning of a document.
 *  Errors:  agreed; SMOE_ERR_CONFIG for a prompt that is empty or no UTF-8, SMOE_ERR_IO.
 */
smoe_status smoe_prompts_read(smoe_prompts *prompts, const smoe_group *group, const smoe_words *words,
                              const char *file);

/** Give them back; fine after a failed read. Local. */
void smoe_prompts_release(smoe_prompts *prompts);

#endif
