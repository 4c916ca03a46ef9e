/** oneDNN: all that is called of it. In a build without it nothing is there, and nothing may be called. */
#ifndef STABLEMOE_KERNEL_ONEDNN_H
#define STABLEMOE_KERNEL_ONEDNN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Return whether this build has oneDNN. Local. */
bool smoe_onednn_built(void);

/** Return the version ("2.6.3"), and the instruction set in use as DNNL_MAX_CPU_ISA spells it. Local. */
const char *smoe_onednn_version(void);
const char *smoe_onednn_isa(void);

/** Return whether the instruction set in use includes AVX-512, bf16 products in AVX-512, and AMX tiles of bf16;
 *  the last two also need a version of oneDNN whose matmul primitive this program can call (2.x). Local.
 */
bool smoe_onednn_has_avx512(void);
bool smoe_onednn_has_bf16(void);
bool smoe_onednn_has_amx(void);

/** c [m, n] = alpha op(a) [m, k] op(b) [k, n] + beta c; see smoe_gemm. Local. Panics if it fails. */
void smoe_onednn_sgemm(bool transpose_a, bool transpose_b, size_t m, size_t n, size_t k, float alpha,
                       const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c,
                       size_t ldc);

/** What one product of bf16 operands is; every field is part of the key under which the generated code is kept. */
typedef struct smoe_onednn_shape {
  bool transpose_a, transpose_b;
  bool add;     /**< c += instead of c = */
  bool bias;    /**< c = op(a) op(b) + bias; not with add */
  bool rounded; /**< c is bf16 instead of fp32 */
  size_t m, n, k, lda, ldb, ldc;
} smoe_onednn_shape;

/** One product of bf16 operands with sums in fp32.  Local; from one thread at a time. Panics if it fails.
 *
 *  c        out  [m, n] floats, or bf16 if shape->rounded; inout if shape->add
 *  bias     in   [n], or NULL without shape->bias
 *
 *  Cost:    the first call of a shape generates code: 0.5 to 3 ms.
 */
void smoe_onednn_matmul(const smoe_onednn_shape *shape, void *c, const uint16_t *a, const uint16_t *b,
                        const float *bias);

#endif
