/** What the processor has, as far as kernels are chosen by it at run time. */
#ifndef STABLEMOE_KERNEL_CPU_H
#define STABLEMOE_KERNEL_CPU_H

#include <stdbool.h>

/** Return whether the processor and the system have AVX2 with FMA, AVX-512 (F, BW, DQ, VL), bf16 dot products in
 *  AVX-512, and AMX tiles of bf16. False on every other architecture. Local.
 */
bool smoe_cpu_has_avx2(void);
bool smoe_cpu_has_avx512(void);
bool smoe_cpu_has_avx512_bf16(void);
bool smoe_cpu_has_amx_bf16(void);

/** Return whether the processor is one of AMD. Local. */
bool smoe_cpu_is_amd(void);

/** Ask the system for the use of AMX tiles in this process; false if it refuses. Repeated calls cost nothing. Local. */
bool smoe_cpu_enable_amx(void);

/** Return whether processors of this family and model have AVX-512, but this one does not report it: a hypervisor
 *  or the firmware hides it. False where the model is not known. Local.
 */
bool smoe_cpu_hides_avx512(void);

/** Return the size in bytes of the core's second and of its last cache, as the system reports them; 0: not known. Local. */
long smoe_cpu_l2_bytes(void);
long smoe_cpu_l3_bytes(void);

#endif
