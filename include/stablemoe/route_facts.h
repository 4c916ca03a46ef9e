/** What routing methods build their tables from before training: token counts, a trained model's embeddings. */
#ifndef STABLEMOE_ROUTE_FACTS_H
#define STABLEMOE_ROUTE_FACTS_H

#include "stablemoe/task.h"

/** Prepare the routers of a new run: once, after smoe_params_initialise and before the first update.
 *
 *  Collective over the model's group; reads only what the method asks for.
 *  Errors:  agreed; SMOE_ERR_CONFIG where the model whose embeddings are wanted has another vocabulary.
 */
smoe_status smoe_routers_prepare(smoe_model *model, const smoe_task *task);

/** Look whether smoe_routers_prepare will find the model that the method asks for. Collective. Errors: agreed, as
 *  there.
 */
smoe_status smoe_routers_check(const smoe_model *model, const smoe_task *task);

#endif
