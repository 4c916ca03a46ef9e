/** Directories for the files that a user names: made where they are missing. All functions are Local. */
#ifndef STABLEMOE_DIRECTORY_H
#define STABLEMOE_DIRECTORY_H

#include "stablemoe/status.h"

/** Make a directory and those above it; fine where it is there. Several ranks may do it at once.
 *  Errors:  SMOE_ERR_IO.
 */
smoe_status smoe_directory_make(const char *path);

/** Make the directory that a file is to be in, and see whether files can be made there: before any work is done
 *  for the file. Nothing is asked where the file is there already.
 *  Errors:  SMOE_ERR_IO.
 */
smoe_status smoe_directory_make_for(const char *file);

/** Free bytes of the file system of a directory; negative: not known. */
double smoe_directory_room(const char *path);

#endif
