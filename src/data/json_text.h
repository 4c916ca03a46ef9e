/** Documents in JSON objects: one a line (JSON lines), one after the other, or in an array. */
#ifndef STABLEMOE_DATA_JSON_TEXT_H
#define STABLEMOE_DATA_JSON_TEXT_H

#include "text.h"

/** Release the object that a reader holds. Local. */
void smoe_json_text_release(smoe_reader *reader);

#endif
