#include "cpu.h"

#include <unistd.h>

#if defined __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>

/* Leaf 7, subleaf 0, register edx: what __builtin_cpu_supports of older compilers has no names for. */
enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };

bool smoe_cpu_has_avx2(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool smoe_cpu_has_avx512(void) {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool smoe_cpu_has_avx512_bf16(void) {
  return smoe_cpu_has_avx512() && __builtin_cpu_supports("avx512bf16");
}

/* arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): Linux 5.16 and later save tiles only for those who ask. */
bool smoe_cpu_enable_amx(void) {
  enum { REQUEST = 0x1023, TILE_DATA = 18 };
  static int answer = -1;
  if (answer < 0) answer = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return answer == 1;
}

bool smoe_cpu_has_amx_bf16(void) {
  unsigned a, b, c, d;
  if (!smoe_cpu_has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned both = AMX_BF16 | AMX_TILE;
  return (d & both) == both && smoe_cpu_enable_amx();
}

/* Family and model as the manuals print them. */
static void identify(unsigned *vendor, unsigned *family, unsigned *model) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  *vendor = *family = *model = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return;
  *vendor = b;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return;
  *family = (a >> 8 & 15) + ((a >> 8 & 15) == 15 ? a >> 20 & 255 : 0);
  *model = (a >> 4 & 15) | (a >> 12 & 0xf0);
}

bool smoe_cpu_is_amd(void) {
  unsigned vendor, family, model;
  identify(&vendor, &family, &model);
  return vendor == signature_AMD_ebx;
}

bool smoe_cpu_hides_avx512(void) {
  /* Skylake to Cooper Lake, Ice Lake (two), Sapphire, Emerald and Granite Rapids (two). */
  static const unsigned char intel[] = {0x55, 0x6a, 0x6c, 0x8f, 0xcf, 0xad, 0xae};
  unsigned vendor, family, model;
  identify(&vendor, &family, &model);
  bool has = false;
  if (vendor == signature_INTEL_ebx && family == 6)
    for (unsigned i = 0; i < sizeof intel; i++) has = has || intel[i] == model;
  if (vendor == signature_AMD_ebx) /* Zen 4 shares its family with Zen 3; Zen 5 is family 26 */
    has = family >= 0x1a ||
          (family == 0x19 && ((model >= 0x10 && model < 0x20) || (model >= 0x60 && model < 0x80) ||
                              (model >= 0xa0 && model < 0xb0)));
  return has && !smoe_cpu_has_avx512();
}
#else
bool smoe_cpu_has_avx2(void) {
  return false;
}

bool smoe_cpu_has_avx512(void) {
  return false;
}

bool smoe_cpu_has_avx512_bf16(void) {
  return false;
}

bool smoe_cpu_enable_amx(void) {
  return false;
}

bool smoe_cpu_has_amx_bf16(void) {
  return false;
}

bool smoe_cpu_hides_avx512(void) {
  return false;
}

bool smoe_cpu_is_amd(void) {
  return false;
}
#endif

static long positive(long value) {
  return value > 0 ? value : 0;
}

long smoe_cpu_l2_bytes(void) {
  return positive(sysconf(_SC_LEVEL2_CACHE_SIZE));
}

long smoe_cpu_l3_bytes(void) {
  return positive(sysconf(_SC_LEVEL3_CACHE_SIZE));
}
