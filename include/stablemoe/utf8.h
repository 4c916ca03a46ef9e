/** Where text is UTF-8, and where its characters end. */
#ifndef STABLEMOE_UTF8_H
#define STABLEMOE_UTF8_H

#include <stddef.h>

/** Length of the beginning that is UTF-8 (RFC 3629) without NUL. Local. */
size_t smoe_utf8_prefix(const char *text, size_t bytes);

/** Longest cut <= limit that does not split a character of valid UTF-8. Local. */
size_t smoe_utf8_cut(const char *text, size_t limit);

#endif
