/** The floating-point type of parameters and activations.
 *
 *  The same sources are compiled twice: in single precision for training, and
 *  with SMOE_DOUBLE for the gradient and parity tests, because in float a
 *  0.1 % error of a gradient hides in the noise of a difference quotient.
 */
#ifndef STABLEMOE_REAL_H
#define STABLEMOE_REAL_H

#include <stddef.h>
#include <stdint.h>

#ifdef SMOE_DOUBLE
typedef double smoe_real;
#define SMOE_REAL_NAME "double"
#define SMOE_MPI_REAL MPI_DOUBLE
#define SMOE_H5_REAL H5T_NATIVE_DOUBLE
#define SMOE_H5_REAL_FILE H5T_IEEE_F64LE
#else
typedef float smoe_real;
#define SMOE_REAL_NAME "float"
#define SMOE_MPI_REAL MPI_FLOAT
#define SMOE_H5_REAL H5T_NATIVE_FLOAT
#define SMOE_H5_REAL_FILE H5T_IEEE_F32LE
#endif

#endif
