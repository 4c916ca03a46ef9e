/** Initial values of a new run from a checkpoint of another one (train.initial), parameters by name. */
#ifndef STABLEMOE_INITIAL_H
#define STABLEMOE_INITIAL_H

#include "stablemoe/model.h"
#include "stablemoe/task.h"

/** Replace the values of every parameter whose name and shape the checkpoint has; moments stay zero.
 *
 *  Collective over the model's group; any number of ranks. Comes after smoe_params_initialise and
 *  smoe_routers_prepare. Prints a table of what is taken and what keeps the values that were drawn.
 *  Does nothing where train.initial is empty.
 *
 *  load  in  false: check and print only (--dry-run), the parameters may have no memory
 *  Errors:  agreed; SMOE_ERR_CONFIG where a name of the file fits nowhere and train.initial_ignore does not
 *           name it, where a shape differs, where layers of one name compute otherwise (heads, activation, ...),
 *           or where the tokenizer is another one; SMOE_ERR_IO, SMOE_ERR_FORMAT for the file.
 */
smoe_status smoe_initial_values(smoe_model *model, const smoe_task *task, bool load);

#endif
