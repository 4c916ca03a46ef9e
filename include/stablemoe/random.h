/** Random numbers without state: every number is a function of
 *  (seed, purpose, update, index), so no rank count, order of calls or restart
 *  can change one. Philox4x32-10 of Random123 underneath.
 */
#ifndef STABLEMOE_RANDOM_H
#define STABLEMOE_RANDOM_H

#include <stdint.h>

/** What a number is for. Values enter the stream: never renumber them. */
typedef enum smoe_purpose {
  SMOE_RANDOM_INIT = 1,     /**< initial values; update = hash of the parameter's name */
  SMOE_RANDOM_ORDER = 2,    /**< order of training sequences; update = epoch */
  SMOE_RANDOM_JITTER = 3,   /**< router noise; index = global token */
  SMOE_RANDOM_DROPOUT = 4,  /**< dropout; stream = site, index = token and block of its row (kernel.h) */
  SMOE_RANDOM_SAMPLE = 5,   /**< text generation; update = position */
  SMOE_RANDOM_SPLIT = 6,    /**< train/valid/test split; index = document */
  SMOE_RANDOM_TEST = 7,     /**< values in tests */
  SMOE_RANDOM_ROUTER = 8,   /**< choices of a router; index = global token */
  SMOE_RANDOM_PAIRS = 9,    /**< order of a direction's sentence pairs; update = pass */
  SMOE_RANDOM_BATCHES = 10, /**< order of a window's micro-batches; update = window */
  SMOE_RANDOM_IMAGES = 11   /**< grids of images and synthetic ones; update = split and what is drawn */
} smoe_purpose;

/** Uniform in [0, 1) with 53 bits. Local. */
double smoe_random_uniform(uint64_t seed, smoe_purpose purpose, uint32_t update, uint64_t index);

/** Standard normal (Box-Muller). Local. */
double smoe_random_normal(uint64_t seed, smoe_purpose purpose, uint32_t update, uint64_t index);

/** 64 random bits. Local. */
uint64_t smoe_random_bits(uint64_t seed, smoe_purpose purpose, uint32_t update, uint64_t index);

/** Consecutive indices that smoe_random_lanes computes together. */
enum { SMOE_RANDOM_LANES = 16 };

/** All 128 bits of 16 consecutive indices, in vector code: word[k][i] is 32-bit word k of index + i.
 *
 *  Local.
 *  stream  below 2^24: tells apart what has the same purpose; 0 gives the numbers of smoe_random_bits, word 0 being
 *          the lower half
 */
void smoe_random_lanes(uint32_t word[4][SMOE_RANDOM_LANES], uint64_t seed, smoe_purpose purpose,
                       uint32_t stream, uint32_t update, uint64_t index);

/** Image of i under a random permutation of 0..n-1 chosen by (seed, purpose, update).
 *
 *  Local. A Feistel network on the next power of four, walked until the image
 *  is below n; no table, constant memory, any n >= 1.
 */
uint64_t smoe_random_permute(uint64_t seed, smoe_purpose purpose, uint32_t update, uint64_t n, uint64_t i);

/** 32-bit FNV-1a hash of a text, to turn a name into an `update`. Local. */
uint32_t smoe_hash_text(const char *text);

#endif
