/** Names of loss terms: what routers add to the task's loss, in the order of their sums and columns. */
#ifndef STABLEMOE_TERMS_H
#define STABLEMOE_TERMS_H

enum { SMOE_TERMS = 8 };

typedef struct smoe_terms {
  int n;
  const char *name[SMOE_TERMS];
} smoe_terms;

/** "balance" and "distill": columns of every run, zero where a method has no such term; further ones follow. */
extern const smoe_terms smoe_terms_common;

/** Place of a name; -1: not there. Local. */
int smoe_terms_find(const smoe_terms *terms, const char *name);

/** Add a name unless it is there. Local. */
void smoe_terms_add(smoe_terms *terms, const char *name);

#endif
