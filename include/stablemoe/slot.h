/** A token's slots for experts as numbers: e, -1 where unused, -2 - e where expert e had no room. */
#ifndef STABLEMOE_SLOT_H
#define STABLEMOE_SLOT_H

#include <stdint.h>

/** The expert that a slot has chosen, dropped or not; -1: unused. */
static inline int32_t smoe_slot_expert(int32_t slot) {
  return slot < -1 ? -2 - slot : slot;
}

/** The slot of expert e, which had no room. */
static inline int32_t smoe_slot_dropped(int32_t e) {
  return -2 - e;
}

#endif
