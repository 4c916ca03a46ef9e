#include "onednn.h"

#include <stdio.h>
#include <string.h>

#include "stablemoe/arena.h"
#include "stablemoe/status.h"

#ifdef SMOE_ONEDNN
#include <oneapi/dnnl/dnnl.h>

bool smoe_onednn_built(void) {
  return true;
}

const char *smoe_onednn_version(void) {
  static char text[32];
  const dnnl_version_t *version = dnnl_version();
  snprintf(text, sizeof text, "%d.%d.%d", version->major, version->minor, version->patch);
  return text;
}

const char *smoe_onednn_isa(void) {
  static const struct {
    dnnl_cpu_isa_t isa;
    const char *name;
  } sets[] = {{dnnl_cpu_isa_sse41, "SSE41"},
              {dnnl_cpu_isa_avx, "AVX"},
              {dnnl_cpu_isa_avx2, "AVX2"},
              {dnnl_cpu_isa_avx512_core, "AVX512_CORE"},
              {dnnl_cpu_isa_avx512_core_vnni, "AVX512_CORE_VNNI"},
              {dnnl_cpu_isa_avx512_core_bf16, "AVX512_CORE_BF16"},
              {dnnl_cpu_isa_avx512_core_amx, "AVX512_CORE_AMX"}};
  const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
  for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
    if (sets[i].isa == isa) return sets[i].name;
  return "DEFAULT"; /* newer than this list */
}

/* Instruction sets are masks: a larger one has the bits of those it includes. */
static bool includes(dnnl_cpu_isa_t part) {
  return (dnnl_get_effective_cpu_isa() & part) == part;
}

bool smoe_onednn_has_avx512(void) {
  return includes(dnnl_cpu_isa_avx512_core);
}

static void check(dnnl_status_t status, const char *what) {
  /* One rank fails while the others are in the middle of their own products. */
  if (status != dnnl_success)
    SMOE_PANIC(status == dnnl_out_of_memory ? SMOE_ERR_MEMORY : SMOE_ERR_BUG,
               "oneDNN: %s failed with status %d", what, status);
}

void smoe_onednn_sgemm(bool transpose_a, bool transpose_b, size_t m, size_t n, size_t k, float alpha,
                       const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c,
                       size_t ldc) {
  const dnnl_status_t status =
      dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', (dnnl_dim_t)m, (dnnl_dim_t)n,
                 (dnnl_dim_t)k, alpha, a, (dnnl_dim_t)lda, b, (dnnl_dim_t)ldb, beta, c, (dnnl_dim_t)ldc);
  if (status != dnnl_success)
    SMOE_PANIC(status == dnnl_out_of_memory ? SMOE_ERR_MEMORY : SMOE_ERR_BUG,
               "oneDNN's product of [%zu, %zu] and [%zu, %zu] failed with status %d", m, k, k, n, status);
}
#else
bool smoe_onednn_built(void) {
  return false;
}

const char *smoe_onednn_version(void) {
  return "none";
}

const char *smoe_onednn_isa(void) {
  return "none";
}

bool smoe_onednn_has_avx512(void) {
  return false;
}

void smoe_onednn_sgemm(bool transpose_a, bool transpose_b, size_t m, size_t n, size_t k, float alpha,
                       const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c,
                       size_t ldc) {
  SMOE_PANIC(SMOE_ERR_BUG, "a product by oneDNN in a build without it");
}
#endif

/* The matmul primitive has another interface from version 3 on. */
#if defined SMOE_ONEDNN && DNNL_VERSION_MAJOR == 2
bool smoe_onednn_has_bf16(void) {
  return includes(dnnl_cpu_isa_avx512_core_bf16);
}

bool smoe_onednn_has_amx(void) {
  return includes(dnnl_cpu_isa_avx512_core_amx);
}

typedef struct product {
  smoe_onednn_shape shape;
  dnnl_primitive_t primitive;
  dnnl_memory_t a, b, c, bias; /* without memory of their own: the handles are set at each call */
  struct product *next;
} product;

/* Never given up: a run has a bounded number of shapes (bf16.c cuts rows so that it stays so). */
enum { BUCKETS = 1024 };
static struct {
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  product *bucket[BUCKETS];
} cache;

static dnnl_memory_t matrix(dnnl_memory_desc_t *layout, size_t rows, size_t columns, size_t row_stride,
                            size_t column_stride, dnnl_data_type_t type) {
  dnnl_dims_t sizes = {(dnnl_dim_t)rows, (dnnl_dim_t)columns};
  dnnl_dims_t strides = {(dnnl_dim_t)row_stride, (dnnl_dim_t)column_stride};
  dnnl_memory_t memory;
  check(dnnl_memory_desc_init_by_strides(layout, 2, sizes, type, strides), "the layout of a matrix");
  check(dnnl_memory_create(&memory, layout, cache.engine, DNNL_MEMORY_NONE), "the description of a matrix");
  return memory;
}

static dnnl_primitive_attr_t attributes(const smoe_onednn_shape *s) {
  dnnl_primitive_attr_t attr;
  dnnl_post_ops_t after;
  check(dnnl_primitive_attr_create(&attr), "attributes");
  check(dnnl_post_ops_create(&after), "post-operations");
  if (s->add) check(dnnl_post_ops_append_sum(after, 1), "adding to the result");
  check(dnnl_primitive_attr_set_post_ops(attr, after), "attributes");
  check(dnnl_post_ops_destroy(after), "post-operations");
  return attr;
}

static product *generate(const smoe_onednn_shape *s) {
  if (!cache.engine) {
    check(dnnl_engine_create(&cache.engine, dnnl_cpu, 0), "the engine");
    check(dnnl_stream_create(&cache.stream, cache.engine, dnnl_stream_default_flags), "the stream");
  }
  product *p = smoe_alloc(sizeof *p);
  memset(p, 0, sizeof *p);
  p->shape = *s;
  dnnl_memory_desc_t a, b, c, bias;
  p->a = matrix(&a, s->m, s->k, s->transpose_a ? 1 : s->lda, s->transpose_a ? s->lda : 1, dnnl_bf16);
  p->b = matrix(&b, s->k, s->n, s->transpose_b ? 1 : s->ldb, s->transpose_b ? s->ldb : 1, dnnl_bf16);
  p->c = matrix(&c, s->m, s->n, s->ldc, 1, s->rounded ? dnnl_bf16 : dnnl_f32);
  if (s->bias) p->bias = matrix(&bias, 1, s->n, s->n, 1, dnnl_f32);
  dnnl_matmul_desc_t description;
  check(dnnl_matmul_desc_init(&description, &a, &b, s->bias ? &bias : NULL, &c),
        "the description of a product");
  dnnl_primitive_attr_t attr = attributes(s);
  dnnl_primitive_desc_t plan;
  check(dnnl_primitive_desc_create(&plan, &description, attr, cache.engine, NULL),
        "planning a product of bf16");
  check(dnnl_primitive_create(&p->primitive, plan), "generating a product of bf16");
  check(dnnl_primitive_desc_destroy(plan), "planning a product of bf16");
  check(dnnl_primitive_attr_destroy(attr), "attributes");
  return p;
}

static bool same(const smoe_onednn_shape *a, const smoe_onednn_shape *b) {
  return a->transpose_a == b->transpose_a && a->transpose_b == b->transpose_b && a->add == b->add &&
         a->bias == b->bias && a->rounded == b->rounded && a->m == b->m && a->n == b->n && a->k == b->k &&
         a->lda == b->lda && a->ldb == b->ldb && a->ldc == b->ldc;
}

static product *find(const smoe_onednn_shape *s) {
  const size_t mixed = (s->m * 31 + s->n) * 31 + s->k + (size_t)s->transpose_a * 7 + (size_t)s->add * 3;
  product **place = &cache.bucket[(mixed * 0x9e3779b97f4a7c15ULL) >> 54];
  while (*place && !same(&(*place)->shape, s)) place = &(*place)->next;
  if (!*place) *place = generate(s);
  return *place;
}

static dnnl_exec_arg_t argument(int which, dnnl_memory_t memory, const void *data) {
  check(dnnl_memory_set_data_handle(memory, (void *)data), "the place of a matrix");
  return (dnnl_exec_arg_t){which, memory};
}

void smoe_onednn_matmul(const smoe_onednn_shape *shape, void *c, const uint16_t *a, const uint16_t *b,
                        const float *bias) {
  const product *p = find(shape);
  dnnl_exec_arg_t arguments[4] = {argument(DNNL_ARG_SRC, p->a, a), argument(DNNL_ARG_WEIGHTS, p->b, b),
                                  argument(DNNL_ARG_DST, p->c, c)};
  if (shape->bias) arguments[3] = argument(DNNL_ARG_BIAS, p->bias, bias);
  check(dnnl_primitive_execute(p->primitive, cache.stream, shape->bias ? 4 : 3, arguments),
        "a product of bf16");
  check(dnnl_stream_wait(cache.stream), "a product of bf16");
}
#else
bool smoe_onednn_has_bf16(void) {
  return false;
}

bool smoe_onednn_has_amx(void) {
  return false;
}

void smoe_onednn_matmul(const smoe_onednn_shape *shape, void *c, const uint16_t *a, const uint16_t *b,
                        const float *bias) {
  SMOE_PANIC(SMOE_ERR_BUG, "a product of bf16 by oneDNN in a build without it");
}
#endif
