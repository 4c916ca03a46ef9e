#include <stablemoe_commit.h>
#include <stdio.h>

#include "app.h"
#include "stablemoe/bf16.h"
#include "stablemoe/io_probe.h"
#include "stablemoe/kernel.h"
#include "stablemoe/mpi_facts.h"
#include "stablemoe/real.h"

#ifdef __clang__
#define COMPILER "clang " __clang_version__
#elif defined __GNUC__
#define COMPILER "gcc " __VERSION__
#else
#define COMPILER "unknown"
#endif

/* SMOE_BUILD_*: src/app/meson.build. */
void smoe_app_version(FILE *out) {
  fprintf(out, "stablemoe " SMOE_VERSION " (commit " SMOE_COMMIT ")\n");
  fprintf(out, "  precision      %s\n", SMOE_REAL_NAME);
  fprintf(out, "  compiler       %s, for %s, %s\n", COMPILER, SMOE_BUILD_CPU,
#ifdef NDEBUG
          "without assertions"
#else
          "with assertions"
#endif
  );
  fprintf(out, "  sanitizers     %s\n", SMOE_BUILD_SANITIZE);
  fprintf(out, "  MPI            %s\n", smoe_mpi_name());
  fprintf(out, "  HDF5           %s\n", smoe_hdf5_name());
  fprintf(out, "  BLAS           %s\n", smoe_blas_description());
  fprintf(out, "  bf16           %s: %s\n", smoe_bf16_name(),
          smoe_bf16_pays() ? "faster than fp32 here" : "not faster than fp32 here");
  fprintf(out, "  SentencePiece  %s\n", SMOE_BUILD_SENTENCEPIECE);
}
