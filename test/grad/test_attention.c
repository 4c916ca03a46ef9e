/** Causal self-attention. */
#include "difference.h"
#include "stablemoe/kernel.h"

typedef struct problem {
  size_t s, t, h, d;
  smoe_real *qkv, *out, *lse, *scratch, *weight;
} problem;

static double attention_value(void *context) {
  problem *p = context;
  smoe_attention_forward(p->out, p->lse, p->qkv, p->scratch, p->s, p->t, p->h, p->d);
  return difference_fold(p->weight, p->out, p->s * p->t * p->h * p->d);
}

static void attention(size_t s, size_t t, size_t h, size_t d) {
  const size_t n = s * t * h * d, n_scratch = smoe_attention_scratch(t, d);
  problem p = {.s = s, .t = t, .h = h, .d = d, .qkv = values_uniform(3 * n, 1), .out = values_zero(n)};
  p.lse = values_zero(s * h * t), p.weight = values_uniform(n, 2), p.scratch = values_zero(n_scratch);
  for (size_t i = 0; i < 3 * n; i++) p.qkv[i] *= 2;
  smoe_real *dqkv = values_uniform(3 * n, 3);
  attention_value(&p);
  /* Whatever scratch and dqkv held before must not matter. */
  for (size_t i = 0; i < n_scratch; i++) p.scratch[i] = NAN;
  for (size_t i = 0; i < 3 * n; i++) dqkv[i] = NAN;
  smoe_attention_backward(dqkv, p.weight, p.qkv, p.out, p.lse, p.scratch, s, t, h, d);
  difference_check("attention dqkv", attention_value, &p, p.qkv, dqkv, 3 * n);
  smoe_free(p.qkv), smoe_free(p.out), smoe_free(p.lse), smoe_free(p.scratch), smoe_free(p.weight);
  smoe_free(dqkv);
}

int main(void) {
  attention(1, 2, 1, 1);
  attention(2, 9, 3, 5);
  attention(1, 67, 2, 4); /* more queries than one block */
  attention(1, 130, 1, 2);
  return test_verdict("grad/attention");
}
