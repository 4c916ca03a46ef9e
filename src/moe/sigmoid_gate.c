#include "sigmoid_gate.h"

#include <math.h>

#include "stablemoe/kernel.h"
#include "stablemoe/router.h"

void smoe_sigmoid_gate_forward(smoe_real *gate, const int32_t *choice, const smoe_real *centroid,
                               const smoe_real *offset, const smoe_real *x, size_t n, size_t c) {
  for (size_t t = 0; t < n; t++) {
    const int32_t a = smoe_slot_expert(choice[t]);
    gate[t] = 0;
    if (a < 0) continue;
    /* A product of its own in every stage: where the expert is fixed there is no score of a GEMM,
     * which would round otherwise. */
    const smoe_real dot = smoe_dot(centroid + (size_t)a * c, x + t * c, c),
                    s = offset ? dot + offset[a] : dot;
    gate[t] = isfinite(s) ? smoe_sigmoid(s) : 0;
  }
}

void smoe_sigmoid_gate_backward(smoe_real *dx, smoe_real *dcentroid, smoe_real *doffset,
                                const smoe_real *dgate, const smoe_real *gate, const int32_t *choice,
                                const smoe_real *centroid, const smoe_real *x, size_t n, size_t c) {
  for (size_t t = 0; t < n; t++) {
    const int32_t a = smoe_slot_expert(choice[t]);
    if (a < 0) continue;
    const smoe_real ds = gate[t] * (1 - gate[t]) * dgate[t]; /* gate = sigmoid(s) */
    if (doffset) doffset[a] += ds;
    if (dcentroid) smoe_add_rows_scaled(dcentroid + (size_t)a * c, &ds, 1, x + t * c, 1, c);
    smoe_add_rows_scaled(dx + t * c, &ds, 1, centroid + (size_t)a * c, 1, c);
  }
}
