/** Values as JSON writes them, into a stream; objects and commas are the caller's. */
#ifndef STABLEMOE_JSON_H
#define STABLEMOE_JSON_H

#include <stddef.h>
#include <stdio.h>

/** Print bytes as a JSON string, in quotes. Local.
 *
 *  What JSON wants escaped is; each byte that is no UTF-8 becomes U+FFFD, so the output is always valid.
 */
void smoe_json_bytes(FILE *out, const char *text, size_t bytes);

/** The same for a text that ends with a NUL; NULL: null. Local. */
void smoe_json_text(FILE *out, const char *text);

/** Print a number with `digits` significant digits (17 keep every bit of a double); null where it is not
 *  finite, which JSON cannot say. Local.
 */
void smoe_json_real(FILE *out, double value, int digits);

#endif
