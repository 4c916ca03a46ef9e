/** What a corpus of sentence pairs holds, for people. */
#ifndef STABLEMOE_APP_PRINT_PAIRS_H
#define STABLEMOE_APP_PRINT_PAIRS_H

#include "stablemoe/status.h"

/** Print languages, and pairs, tokens and bytes of each split and direction. Local. Errors: as
 *  smoe_pairs_open_local.
 */
smoe_status smoe_app_print_pairs(const char *path);

#endif
