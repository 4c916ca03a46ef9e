/** Token and position embedding, and the rows' scaling of the combine step. */
#include "difference.h"
#include "stablemoe/kernel.h"

typedef struct problem {
  size_t s, t, c;
  const int32_t *token;
  smoe_real *table, *position, *x, *weight;
} problem;

static const smoe_real scale = 3;

static double embedding_value(void *context) {
  problem *p = context;
  smoe_embedding_forward(p->x, p->token, p->table, p->position, scale, p->s, p->t, p->c);
  return difference_fold(p->weight, p->x, p->s * p->t * p->c);
}

static void embedding(size_t s, size_t t, size_t c, size_t v) {
  const size_t n = s * t * c;
  problem p = {
      .s = s, .t = t, .c = c, .table = values_uniform(v * c, 1), .position = values_uniform(t * c, 2)};
  int32_t *token = values_ids(s * t, (int32_t)v, 3);
  p.token = token, p.x = values_zero(n), p.weight = values_uniform(n, 4);
  smoe_real *dtable = values_zero(v * c), *dposition = values_zero(t * c);
  smoe_embedding_backward(dtable, dposition, p.weight, token, scale, s, t, c);
  difference_check("embedding dtable", embedding_value, &p, p.table, dtable, v * c);
  difference_check("embedding dposition", embedding_value, &p, p.position, dposition, t * c);

  smoe_real *dtable1 = values_copy(dtable, v * c), *dposition1 = values_copy(dposition, t * c);
  smoe_embedding_backward(dtable, dposition, p.weight, token, scale, s, t, c);
  difference_doubled("embedding dtable", dtable1, dtable, v * c);
  difference_doubled("embedding dposition", dposition1, dposition, t * c);
  smoe_free(p.table), smoe_free(p.position), smoe_free(token), smoe_free(p.x), smoe_free(p.weight);
  smoe_free(dtable), smoe_free(dposition), smoe_free(dtable1), smoe_free(dposition1);
}

int main(void) {
  embedding(1, 1, 1, 1);
  embedding(3, 8, 5, 4);
  embedding(2, 5, 140, 3); /* more columns than one thread takes */
  return test_verdict("grad/embedding");
}
