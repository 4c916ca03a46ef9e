#include "stablemoe/kernel.h"

#include "vector.h"

/* The constants of smoe_adam, folded in double and rounded once. */
typedef struct folded {
  smoe_real scale;
  smoe_real beta1, rest1; /* rest = 1 - beta */
  smoe_real beta2, rest2;
  smoe_real step; /* lr / correction1 */
  smoe_real root; /* 1 / sqrt(correction2) */
  smoe_real epsilon;
  smoe_real decay; /* lr decay: subtracted as its own term, because 1 - lr decay would round it away */
} folded;

static void piece_step(smoe_real *restrict w, smoe_real *restrict m, smoe_real *restrict v,
                       const smoe_real *restrict gradient, size_t n, folded a) {
  for (size_t i = 0; i < n; i++) {
    const smoe_real g = a.scale * gradient[i];
    m[i] = a.beta1 * m[i] + a.rest1 * g;
    v[i] = a.beta2 * v[i] + a.rest2 * (g * g);
    w[i] -= a.step * m[i] / (sqrt_real(v[i]) * a.root + a.epsilon) + a.decay * w[i];
  }
}

void smoe_adam_step(smoe_real *w, smoe_real *m, smoe_real *v, const smoe_real *gradient, size_t n,
                    const smoe_adam *adam) {
  const folded a = {.scale = (smoe_real)adam->scale,
                    .beta1 = (smoe_real)adam->beta1,
                    .rest1 = (smoe_real)(1 - adam->beta1),
                    .beta2 = (smoe_real)adam->beta2,
                    .rest2 = (smoe_real)(1 - adam->beta2),
                    .step = (smoe_real)(adam->lr / adam->correction1),
                    .root = (smoe_real)(1 / sqrt(adam->correction2)),
                    .epsilon = (smoe_real)adam->epsilon,
                    .decay = (smoe_real)(adam->lr * adam->decay)};
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i += PIECE)
    piece_step(w + i, m + i, v + i, gradient + i, n - i < PIECE ? n - i : PIECE, a);
}

void smoe_sgd_step(smoe_real *restrict w, const smoe_real *restrict gradient, size_t n, double lr,
                   double decay, double scale) {
  const smoe_real step = (smoe_real)(lr * scale), shrink = (smoe_real)(lr * decay);
#pragma omp parallel for if (n > PARALLEL_MIN)
  for (size_t i = 0; i < n; i++) w[i] -= step * gradient[i] + shrink * w[i];
}
