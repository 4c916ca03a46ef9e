/** A checkpoint in the layout of another program. */
#ifndef STABLEMOE_APP_EXPORT_LAYOUT_H
#define STABLEMOE_APP_EXPORT_LAYOUT_H

#include "layouts.h"
#include "stablemoe/checkpoint.h"

/** Write <output> and config.json in its directory.
 *
 *  Local (serial). The config.json comes first, the tensors last; after a failure neither is there.
 *  Errors:  SMOE_ERR_CONFIG where the model is not of the layout's kind; SMOE_ERR_IO; SMOE_ERR_FORMAT.
 */
smoe_status smoe_export_layout(smoe_layout layout, const char *checkpoint, const smoe_config *config,
                               const char *output);

#endif
