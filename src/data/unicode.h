/** Code points, blanks and lower case, as Python has them. */
#ifndef STABLEMOE_DATA_UNICODE_H
#define STABLEMOE_DATA_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "stablemoe/status.h"

/** Decode UTF-8 into code points; of bytes that are not UTF-8 each becomes U+FFFD.
 *
 *  Local. point  out  [bytes]; returns their number.
 */
size_t smoe_unicode_decode(const char *text, size_t bytes, int32_t *point);

/** Encode code points as UTF-8.
 *
 *  Local. text  out  [4 n]; returns the bytes.
 */
size_t smoe_unicode_encode(const int32_t *point, size_t n, char *text);

/** Whether a code point is a blank for Python's str.split. Local. */
bool smoe_unicode_is_blank(int32_t point);

/** Check that code points can be made lower case: the C library needs a UTF-8 locale for it.
 *
 *  Local. Errors: SMOE_ERR_CONFIG.
 */
smoe_status smoe_unicode_can_lower(void);

/** Make code points lower case, with a final sigma at the end of a word.
 *
 *  Local; after smoe_unicode_can_lower. lower  out  [2 n]; returns their number.
 */
size_t smoe_unicode_lower(const int32_t *point, size_t n, int32_t *lower);

#endif
