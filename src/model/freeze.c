/* What a run learns: patterns over the parameters' names. */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "stablemoe/model.h"

/* The next text of a list; its end. */
static const char *next_item(const char *list, char *item, size_t bytes) {
  const size_t length = strcspn(list, ",");
  snprintf(item, bytes, "%.*s", (int)length, list);
  return list + length + (list[length] == ',');
}

bool smoe_model_matches(const char *list, const char *name) {
  char pattern[SMOE_TEXT_MAX];
  while (*list) {
    list = next_item(list, pattern, sizeof pattern);
    if (fnmatch(pattern, name, 0) == 0) return true;
  }
  return false;
}
