/** Operands of matrix products, which are fp32 or bf16: types, rounding, and memory.
 *
 *  train.precision decides which: in bf16 all that a product reads (weights, activations, gradients) is rounded
 *  once, to nearest, and sums are fp32. Whatever else computes with a number does so in fp32. A layer hands its
 *  products an smoe_operand (map.h), and does not look inside.
 *
 *  A bf16 is the upper half of a float: 8 bits of exponent, 7 of mantissa. All functions are Local.
 */
#ifndef STABLEMOE_OPERAND_H
#define STABLEMOE_OPERAND_H

#include <stdbool.h>

#include "stablemoe/arena.h"
#include "stablemoe/real.h"

/** Values of train.precision, in the order of its table. */
typedef enum smoe_precision { SMOE_FP32, SMOE_BF16 } smoe_precision;

/** Upper half of a float. */
typedef uint16_t smoe_bf16;

/** Largest relative error of rounding a normal number. */
#define SMOE_BF16_EPSILON (1.0 / 256)

/** Numbers that products read. One of the pointers is set, or none: no operand. */
typedef struct smoe_operand {
  smoe_real *wide; /**< fp32 (real) */
  smoe_bf16 *half; /**< bf16 */
} smoe_operand;

/** Return "fp32" or "bf16". */
const char *smoe_precision_name(smoe_precision precision);

/** Return bytes of an element. */
size_t smoe_precision_bytes(smoe_precision precision);

/** Take memory for n numbers; both pointers are NULL while the arena measures. */
smoe_operand smoe_arena_operand(smoe_arena *arena, smoe_precision precision, size_t n);

/** The operand from number `first` on. */
smoe_operand smoe_operand_at(smoe_operand operand, size_t first);

/** x [n] as an operand: in fp32 x itself, which stays as it is; in bf16 rounded into memory.half.
 *
 *  memory  half: [n] to write in bf16; half NULL: fp32, and memory is not used
 */
smoe_operand smoe_operand_of(smoe_operand memory, const smoe_real *x, size_t n);

/** y [n] = x [n] rounded.  NaN stays NaN (quiet), infinity stays; beyond the largest bf16 to infinity; subnormal
 *  numbers to zero of their sign, as the processor's own instruction does.  The same bits with and without that.
 */
void smoe_bf16_round(smoe_bf16 *y, const smoe_real *x, size_t n);

/** smoe_bf16_round by integer arithmetic alone, whatever the processor has. */
void smoe_bf16_round_portable(smoe_bf16 *y, const smoe_real *x, size_t n);

/** y [n] = x [n], exactly. */
void smoe_bf16_expand(smoe_real *y, const smoe_bf16 *x, size_t n);

/** The same for a short row, by the calling thread alone; y [n] = factor * x [n], rounded. */
void smoe_bf16_round_row(smoe_bf16 *y, const smoe_real *x, smoe_real factor, size_t n);
void smoe_bf16_expand_row(smoe_real *y, const smoe_bf16 *x, size_t n);

/** y [n] += x [n], and y [n] += factor * x [n], in fp32, by the calling thread alone. */
void smoe_bf16_add_row(smoe_real *y, const smoe_bf16 *x, size_t n);
void smoe_bf16_add_row_scaled(smoe_real *y, smoe_real factor, const smoe_bf16 *x, size_t n);

#endif
