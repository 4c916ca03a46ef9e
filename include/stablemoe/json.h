/** Writing JSON: a document member by member into a stream, so that its punctuation is in one place.
 *
 *  All functions are Local. `key` names the value in an object, and is NULL in an array and for the document
 *  itself; the writer knows where it stands, and a key that is missing, too many, a value after the
 *  document's end, or an end without a beginning is a panic (SMOE_ERR_BUG). Nothing here fails because of
 *  the stream: an error stays in it (ferror), and who closes or flushes it looks there.
 *
 *      smoe_json json;
 *      smoe_json_begin(&json, stdout, 0);
 *      smoe_json_object(&json, NULL);
 *      smoe_json_int(&json, "update", 100);
 *      smoe_json_end(&json);
 *      smoe_json_finish(&json);   // {"update": 100}
 */
#ifndef STABLEMOE_JSON_H
#define STABLEMOE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/** Objects and arrays inside one another at most. */
enum { SMOE_JSON_DEPTH = 64 };

typedef struct smoe_json {
  FILE *out;
  int lines; /**< members at the outermost `lines` levels begin a line each; 0: all in one line */
  int depth; /**< objects and arrays that are open */
  bool object[SMOE_JSON_DEPTH], begun[SMOE_JSON_DEPTH]; /**< of each level: what it is, has members */
  bool whole;                                           /**< the document has its value */
  char *text;                                           /**< of smoe_json_begin_text */
  size_t bytes;
} smoe_json;

/** Begin a document in a stream, which stays the caller's. */
void smoe_json_begin(smoe_json *json, FILE *out, int lines);

/** Begin a document in memory; smoe_json_take ends it. */
void smoe_json_begin_text(smoe_json *json, int lines);

/** End a document: all that was opened has to be ended. Prints the newline behind it. */
void smoe_json_finish(smoe_json *json);

/** End a document in memory, as smoe_json_finish does.
 *  bytes  out, may be NULL: of the text, without the NUL behind it
 *  Returns the text, in memory of smoe_alloc.
 */
char *smoe_json_take(smoe_json *json, size_t *bytes);

/** Open an object; an array. */
void smoe_json_object(smoe_json *json, const char *key);
void smoe_json_array(smoe_json *json, const char *key);

/** Close what was opened last. */
void smoe_json_end(smoe_json *json);

/** A text: what JSON wants escaped is; each byte that is no UTF-8 becomes U+FFFD, so the output is always
 *  valid. Keys are printed likewise.
 */
void smoe_json_bytes(smoe_json *json, const char *key, const char *text, size_t bytes);

/** The same for a text that ends with a NUL; NULL: null. */
void smoe_json_text(smoe_json *json, const char *key, const char *text);

/** A number with `digits` significant digits (17 keep every bit of a double); null where it is not finite,
 *  which JSON cannot say.
 */
void smoe_json_real(smoe_json *json, const char *key, double value, int digits);

/** A number with `decimals` digits behind the point; null where it is not finite. */
void smoe_json_fixed(smoe_json *json, const char *key, double value, int decimals);

/** A whole number; true or false; null. */
void smoe_json_int(smoe_json *json, const char *key, int64_t value);
void smoe_json_bool(smoe_json *json, const char *key, bool value);
void smoe_json_null(smoe_json *json, const char *key);

/** An array of numbers: reals with `digits` significant digits; whole numbers. */
void smoe_json_reals(smoe_json *json, const char *key, const double *values, size_t n, int digits);
void smoe_json_ints(smoe_json *json, const char *key, const int64_t *values, size_t n);

#endif
