/** OpenBLAS, as far as src/kernel alone needs it; the rest is in stablemoe/kernel.h. */
#ifndef STABLEMOE_KERNEL_GEMM_H
#define STABLEMOE_KERNEL_GEMM_H

/** Return the version ("OpenBLAS 0.3.21") and the core type whose kernels it uses ("SkylakeX"). Local. */
const char *smoe_openblas_version(void);
const char *smoe_openblas_core(void);

#endif
