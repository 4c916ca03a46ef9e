/** HDF5 files of ours, damaged as the input says: through HDF5, which crashes on wild bytes itself,
 *  and sealed again, so that only our readers are left to see it.
 */
#ifndef STABLEMOE_FUZZ_FILES_H
#define STABLEMOE_FUZZ_FILES_H

#include "fuzz.h"

/** Take a file as the sound one. */
void files_take(const char *path);

/** Damage a copy of it by up to four steps; returns its path. */
const char *files_damage(const uint8_t *data, size_t size);

/** Seeds: every damage once, alone and after another. */
void files_seeds(void);

#endif
