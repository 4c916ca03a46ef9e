/** Attention of every form: cross, grouped heads, padding, offsets. */
#include "difference.h"
#include "stablemoe/kernel.h"

typedef struct problem {
  smoe_attention a;
  smoe_real *q, *kv, *out, *lse, *scratch, *weight;
  size_t n_out;
} problem;

static double attend_value(void *context) {
  problem *p = context;
  const smoe_attention *a = &p->a;
  smoe_attend_forward(p->out, p->lse, p->q, p->kv, p->kv + a->kv_heads * a->width, p->scratch, a);
  return difference_fold(p->weight, p->out, p->n_out);
}

static void attend(smoe_attention a) {
  a.q_stride = a.heads * a.width, a.kv_stride = 2 * a.kv_heads * a.width;
  const size_t n_q = a.sequences * a.queries * a.q_stride, n_kv = a.sequences * a.keys * a.kv_stride;
  const size_t n_scratch = smoe_attend_scratch(&a);
  problem p = {.a = a, .n_out = n_q, .q = values_uniform(n_q, 1), .kv = values_uniform(n_kv, 2)};
  p.out = values_zero(n_q), p.lse = values_zero(a.sequences * a.heads * a.queries);
  p.scratch = values_zero(n_scratch), p.weight = values_uniform(n_q, 3);
  for (size_t i = 0; i < n_q; i++) p.q[i] *= 3;
  smoe_real *dq = values_uniform(n_q, 4), *dkv = values_uniform(n_kv, 5);
  attend_value(&p);
  for (size_t i = 0; i < n_scratch; i++) p.scratch[i] = NAN;
  for (size_t i = 0; i < n_q; i++) dq[i] = NAN;
  for (size_t i = 0; i < n_kv; i++) dkv[i] = NAN;
  smoe_attend_backward(dq, dkv, dkv + a.kv_heads * a.width, p.weight, p.q, p.kv, p.kv + a.kv_heads * a.width,
                       p.out, p.lse, p.scratch, &a);
  difference_check("attend dq", attend_value, &p, p.q, dq, n_q);
  difference_check("attend dk and dv", attend_value, &p, p.kv, dkv, n_kv);
  smoe_free(p.q), smoe_free(p.kv), smoe_free(p.out), smoe_free(p.lse), smoe_free(p.scratch);
  smoe_free(p.weight), smoe_free(dq), smoe_free(dkv);
}

int main(void) {
  const int32_t queries[] = {7, 3, 0}, keys[] = {5, 11, 4}, offset[] = {1, 6, 0};
  attend((smoe_attention){.sequences = 3, .queries = 7, .keys = 11, .heads = 4, .kv_heads = 2, .width = 3});
  attend((smoe_attention){.sequences = 3,
                          .queries = 7,
                          .keys = 11,
                          .heads = 2,
                          .kv_heads = 1,
                          .width = 4,
                          .query_length = queries,
                          .key_length = keys});
  attend((smoe_attention){.sequences = 3,
                          .queries = 7,
                          .keys = 11,
                          .heads = 2,
                          .kv_heads = 2,
                          .width = 5,
                          .causal = true,
                          .query_length = queries,
                          .key_length = keys,
                          .offset = offset});
  attend((smoe_attention){
      .sequences = 1, .queries = 41, .keys = 70, .heads = 2, .kv_heads = 1, .width = 4, .causal = true});
  return test_verdict("grad/attend");
}
