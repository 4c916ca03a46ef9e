/** Weights in the layouts of other programs: the names and shapes of GPT-2 and Llama models. All functions are Local. */
#ifndef STABLEMOE_APP_LAYOUTS_H
#define STABLEMOE_APP_LAYOUTS_H

#include "stablemoe/family.h"
#include "stablemoe/json.h"
#include "stablemoe/tensors.h"

typedef enum smoe_layout { SMOE_LAYOUT_OWN, SMOE_LAYOUT_GPT2, SMOE_LAYOUT_LLAMA } smoe_layout;

extern const char *const smoe_layout_names[];

/** What a model's tensors depend on. */
typedef struct smoe_layout_sizes {
  int64_t width, heads, kv_heads, inner;
} smoe_layout_sizes;

/** Rows first .. first + rows - 1 of a parameter, which are one tensor; transposed: as [columns, rows]. */
typedef struct smoe_layout_part {
  char tensor[SMOE_TENSOR_NAME];
  int64_t first, rows;
  bool transposed;
} smoe_layout_part;

enum { SMOE_LAYOUT_PARTS = 3 };

/** The tensors of a parameter with `rows` rows; their number, 0 where the layout has none. */
int smoe_layout_parts(smoe_layout layout, const smoe_layout_sizes *sizes, const char *param, int64_t rows,
                      smoe_layout_part part[SMOE_LAYOUT_PARTS]);

/** Sizes of a configured model. */
smoe_layout_sizes smoe_layout_sizes_of(const smoe_config *config);

/** Check that a configured model is of the layout's kind.  Errors: SMOE_ERR_CONFIG. */
smoe_status smoe_layout_check(smoe_layout layout, const smoe_config *config);

/** Set a configuration from a config.json, and find the layout by its model_type.
 *  Errors:  SMOE_ERR_IO, SMOE_ERR_FORMAT, SMOE_ERR_CONFIG for what this program's layers cannot compute.
 */
smoe_status smoe_layout_read_config(smoe_config *config, const char *path, smoe_layout *layout);

/** Write the config.json of a model, one JSON object. */
void smoe_layout_write_config(smoe_layout layout, const smoe_config *config, int64_t vocabulary,
                              smoe_json *json);

/** Whether a tensor of the layout is no parameter: masks and tables that other programs store. */
bool smoe_layout_is_constant(const char *tensor);

#endif
