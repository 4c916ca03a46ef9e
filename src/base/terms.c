#include "stablemoe/terms.h"

#include <string.h>

#include "stablemoe/status.h"

const smoe_terms smoe_terms_common = {2, {"balance", "distill"}};

int smoe_terms_find(const smoe_terms *terms, const char *name) {
  for (int i = 0; i < terms->n; i++)
    if (strcmp(terms->name[i], name) == 0) return i;
  return -1;
}

void smoe_terms_add(smoe_terms *terms, const char *name) {
  if (smoe_terms_find(terms, name) >= 0) return;
  SMOE_ASSERT(terms->n < SMOE_TERMS);
  terms->name[terms->n++] = name;
}
