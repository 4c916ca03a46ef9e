#include "stablemoe/block.h"

#include <math.h>
#include <string.h>

#include "stablemoe/kernel.h"
#include "stablemoe/phase.h"

void smoe_block_declare(smoe_block *block, const smoe_settings *settings, smoe_params *params, int number) {
  const int64_t c = settings->model.width, f = settings->model.inner;
  *block = (smoe_block){.params = params,
                        .width = (size_t)c,
                        .heads = (size_t)settings->model.heads,
                        .inner = (size_t)f,
                        .context = (size_t)settings->model.context};
  const smoe_init one = {SMOE_INIT_CONSTANT, 1, false}, zero = {SMOE_INIT_CONSTANT, 0, false};
  /* Xavier for attention (gain 1/sqrt 2 where q, k, v share a matrix), 1/sqrt(fan in) for the FFN:
   * the conventions of the library that the paper's code is built on. */
  const smoe_init qkv = {SMOE_INIT_UNIFORM, sqrt(6.0 / (2.0 * (double)c)) / sqrt(2.0), false};
  const smoe_init proj = {SMOE_INIT_UNIFORM, sqrt(6.0 / (2.0 * (double)c)), false};
  const smoe_init from_c = {SMOE_INIT_UNIFORM, 1 / sqrt((double)c), false};
  const smoe_init from_f = {SMOE_INIT_UNIFORM, 1 / sqrt((double)f), false};
  const int64_t vector_c[] = {c, 0}, vector_f[] = {f, 0}, vector_3c[] = {3 * c, 0};
#define DECLARE(init, decay, name, ...)                                                                      \
  smoe_params_declare(params, SMOE_REPLICATED, __VA_ARGS__, init, decay, "block%d/" name, number)
  block->gamma1 = DECLARE(one, false, "attention/norm/gamma", vector_c);
  block->beta1 = DECLARE(zero, false, "attention/norm/beta", vector_c);
  block->qkv = DECLARE(qkv, true, "attention/qkv/weight", (int64_t[]){3 * c, c, 0});
  block->qkv_bias = DECLARE(zero, false, "attention/qkv/bias", vector_3c);
  block->proj = DECLARE(proj, true, "attention/proj/weight", (int64_t[]){c, c, 0});
  block->proj_bias = DECLARE(zero, false, "attention/proj/bias", vector_c);
  block->gamma2 = DECLARE(one, false, "ffn/norm/gamma", vector_c);
  block->beta2 = DECLARE(zero, false, "ffn/norm/beta", vector_c);
  block->w1 = DECLARE(from_c, true, "ffn/w1", (int64_t[]){f, c, 0});
  block->b1 = DECLARE(from_c, false, "ffn/b1", vector_f);
  block->w2 = DECLARE(from_f, true, "ffn/w2", (int64_t[]){c, f, 0});
  block->b2 = DECLARE(from_f, false, "ffn/b2", vector_c);
#undef DECLARE
}

void smoe_block_layout(smoe_block *block, smoe_arena *tape, int n_lanes, size_t lane_tokens,
                       const smoe_block *shared) {
  const size_t n = (size_t)n_lanes * lane_tokens, c = block->width, f = block->inner;
  block->lane_tokens = lane_tokens;
  block->lane_stride = n_lanes > 1 ? lane_tokens : 0;
  block->mean1 = shared ? shared->mean1 : smoe_arena_reals(tape, n);
  block->rstd1 = shared ? shared->rstd1 : smoe_arena_reals(tape, n);
  block->qkv_rows = shared ? shared->qkv_rows : smoe_arena_reals(tape, n * 3 * c);
  block->attended = shared ? shared->attended : smoe_arena_reals(tape, n * c);
  block->lse = shared ? shared->lse : smoe_arena_reals(tape, n * block->heads);
  block->u = shared ? shared->u : smoe_arena_reals(tape, n * c);
  block->mean2 = shared ? shared->mean2 : smoe_arena_reals(tape, n);
  block->rstd2 = shared ? shared->rstd2 : smoe_arena_reals(tape, n);
  block->h = shared ? shared->h : smoe_arena_reals(tape, n * f);
}

void smoe_block_scratch_layout(smoe_block_scratch *scratch, const smoe_block *block, smoe_arena *arena,
                               bool training) {
  const size_t n = block->lane_tokens, c = block->width;
  *scratch = (smoe_block_scratch){0};
  scratch->normed = smoe_arena_reals(arena, n * c);
  scratch->attention = smoe_arena_reals(arena, smoe_attention_scratch(block->context, c / block->heads));
  if (!training) return;
  scratch->dinner = smoe_arena_reals(arena, n * block->inner);
  scratch->dnormed = smoe_arena_reals(arena, n * c);
  scratch->dqkv = smoe_arena_reals(arena, n * 3 * c);
  scratch->dout = smoe_arena_reals(arena, n * c);
}

static const smoe_real *value(const smoe_block *block, int index) {
  return smoe_params_shared(block->params, index);
}

/* All that goes to the tape: everything but the block's output. */
void smoe_block_recompute(smoe_block *block, const smoe_block_scratch *scratch, int lane,
                          const smoe_real *x) {
  const size_t n = block->lane_tokens, c = block->width, f = block->inner;
  const size_t first = (size_t)lane * block->lane_stride;
  smoe_real *normed = scratch->normed, *qkv = block->qkv_rows + first * 3 * c;
  smoe_real *attended = block->attended + first * c, *u = block->u + first * c, *h = block->h + first * f;

  smoe_phase(SMOE_PHASE_NORM);
  smoe_norm_forward(normed, block->mean1 + first, block->rstd1 + first, x, value(block, block->gamma1),
                    value(block, block->beta1), n, c);
  smoe_phase(SMOE_PHASE_LINEAR);
  smoe_linear_forward(qkv, normed, value(block, block->qkv), value(block, block->qkv_bias), n, c, 3 * c);
  smoe_phase(SMOE_PHASE_ATTENTION);
  smoe_attention_forward(attended, block->lse + first * block->heads, qkv, scratch->attention,
                         n / block->context, block->context, block->heads, c / block->heads);
  smoe_phase(SMOE_PHASE_LINEAR);
  smoe_linear_forward(u, attended, value(block, block->proj), value(block, block->proj_bias), n, c, c);
  smoe_phase(SMOE_PHASE_NORM);
  smoe_add(u, x, n * c);

  smoe_norm_forward(normed, block->mean2 + first, block->rstd2 + first, u, value(block, block->gamma2),
                    value(block, block->beta2), n, c);
  smoe_phase(SMOE_PHASE_LINEAR);
  smoe_linear_forward(h, normed, value(block, block->w1), NULL, n, c, f);
  smoe_phase(SMOE_PHASE_NORM);
  smoe_bias_relu_forward(h, value(block, block->b1), n, f);
}

void smoe_block_forward(smoe_block *block, const smoe_block_scratch *scratch, int lane, smoe_real *y,
                        const smoe_real *x) {
  const size_t n = block->lane_tokens, c = block->width, f = block->inner;
  const size_t first = (size_t)lane * block->lane_stride;
  const smoe_real *u = block->u + first * c, *h = block->h + first * f;
  smoe_block_recompute(block, scratch, lane, x);
  smoe_phase(SMOE_PHASE_LINEAR);
  smoe_linear_forward(y, h, value(block, block->w2), value(block, block->b2), n, f, c);
  smoe_phase(SMOE_PHASE_NORM);
  smoe_add(y, u, n * c);
}

void smoe_block_backward(smoe_block *block, const smoe_block_scratch *scratch, int lane, smoe_real *dx,
                         const smoe_real *x) {
  const size_t n = block->lane_tokens, c = block->width, f = block->inner;
  const size_t first = (size_t)lane * block->lane_stride;
  const smoe_real *qkv = block->qkv_rows + first * 3 * c, *attended = block->attended + first * c;
  const smoe_real *u = block->u + first * c, *h = block->h + first * f;
  smoe_real *normed = scratch->normed, *dnormed = scratch->dnormed;
#define GRAD(index) smoe_params_lane_grad(block->params, block->index, lane)

  /* y = u + W2 h + b2,  h = relu(W1 LN2(u) + b1) */
  smoe_phase(SMOE_PHASE_LINEAR);
  smoe_linear_backward_weight(GRAD(w2), GRAD(b2), dx, h, n, f, c);
  smoe_linear_backward_input(scratch->dinner, dx, value(block, block->w2), n, f, c, false);
  smoe_phase(SMOE_PHASE_NORM);
  smoe_relu_backward(scratch->dinner, h, n * f);
  smoe_norm_recompute(normed, block->mean2 + first, block->rstd2 + first, u, value(block, block->gamma2),
                      value(block, block->beta2), n, c);
  smoe_phase(SMOE_PHASE_LINEAR);
  smoe_linear_backward_weight(GRAD(w1), GRAD(b1), scratch->dinner, normed, n, c, f);
  smoe_linear_backward_input(dnormed, scratch->dinner, value(block, block->w1), n, c, f, false);
  smoe_phase(SMOE_PHASE_NORM);
  smoe_norm_backward(dx, GRAD(gamma2), GRAD(beta2), dnormed, u, value(block, block->gamma2),
                     block->mean2 + first, block->rstd2 + first, n, c);

  /* u = x + Wo attention(Wqkv LN1(x) + bqkv) + bo */
  smoe_phase(SMOE_PHASE_LINEAR);
  smoe_linear_backward_weight(GRAD(proj), GRAD(proj_bias), dx, attended, n, c, c);
  smoe_linear_backward_input(scratch->dout, dx, value(block, block->proj), n, c, c, false);
  smoe_phase(SMOE_PHASE_ATTENTION);
  smoe_attention_backward(scratch->dqkv, scratch->dout, qkv, attended, block->lse + first * block->heads,
                          scratch->attention, n / block->context, block->context, block->heads,
                          c / block->heads);
  smoe_phase(SMOE_PHASE_NORM);
  smoe_norm_recompute(normed, block->mean1 + first, block->rstd1 + first, x, value(block, block->gamma1),
                      value(block, block->beta1), n, c);
  smoe_phase(SMOE_PHASE_LINEAR);
  smoe_linear_backward_weight(GRAD(qkv), GRAD(qkv_bias), scratch->dqkv, normed, n, c, 3 * c);
  smoe_linear_backward_input(dnormed, scratch->dqkv, value(block, block->qkv), n, c, 3 * c, false);
  smoe_phase(SMOE_PHASE_NORM);
  smoe_norm_backward(dx, GRAD(gamma1), GRAD(beta1), dnormed, x, value(block, block->gamma1),
                     block->mean1 + first, block->rstd1 + first, n, c);
#undef GRAD
}
