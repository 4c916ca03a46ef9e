/* What a run's exchange is, in words: a measurement without them says little. */
#include <stdio.h>
#include <string.h>

#include "exchange_parts.h"

/* The value of a setting of Open MPI; 0 where there is none of that name. */
static int setting(const char *name) {
  int level, index, count, value = 0; /* a bool fills its first byte only */
  MPI_T_cvar_handle handle;
  if (MPI_T_init_thread(MPI_THREAD_SINGLE, &level) != MPI_SUCCESS) return 0;
  if (MPI_T_cvar_get_index(name, &index) == MPI_SUCCESS &&
      MPI_T_cvar_handle_alloc(index, NULL, &handle, &count) == MPI_SUCCESS) {
    if (count != 1 || MPI_T_cvar_read(handle, &value) != MPI_SUCCESS) value = 0;
    MPI_T_cvar_handle_free(&handle);
  }
  MPI_T_finalize();
  return value;
}

/* Whether Open MPI was told which algorithm to take: only its start can (the first one may not be
 * changed by the program), so comm.alltoallv has ways of its own. */
static const char *library_choice(void) {
  if (setting("coll_tuned_use_dynamic_rules") == 1) {
    const int algorithm = setting("coll_tuned_alltoallv_algorithm");
    if (algorithm == 1) return "direct, MPI_Alltoallv, set to linear (coll_tuned_alltoallv_algorithm)";
    if (algorithm == 2) return "direct, MPI_Alltoallv, set to pairwise (coll_tuned_alltoallv_algorithm)";
  }
  return "direct, MPI_Alltoallv, algorithm chosen by MPI";
}

static const char *direct(const smoe_exchange *ex) {
  if (ex->shape.options.alltoallv == SMOE_ALLTOALLV_PAIRWISE) return "direct, pairwise";
  if (ex->shape.options.alltoallv == SMOE_ALLTOALLV_LINEAR || smoe_exchange_overlap(ex))
    return "direct, linear";
  return library_choice();
}

void smoe_exchange_describe(const smoe_exchange *ex, char *text, size_t bytes) {
  const smoe_nodes *nodes = &ex->topology->nodes;
  const int overlap = smoe_exchange_overlap(ex);
  char nodes_text[80] = "", overlap_text[80] = "";
  if (smoe_exchange_by_nodes(ex))
    snprintf(nodes_text, sizeof nodes_text, "two-level over %d nodes", nodes->n_nodes);
  if (overlap > 0)
    snprintf(overlap_text, sizeof overlap_text, ", beside the experts in %d group%s", overlap,
             overlap == 1 ? "" : "s");
  if (ex->topology->experts.n_ranks == 1)
    snprintf(text, bytes, "none, this rank has all experts");
  else
    snprintf(text, bytes, "%s%s%s", nodes_text[0] ? nodes_text : direct(ex),
             ex->shape.options.kind == SMOE_EXCHANGE_TWO_LEVEL && !nodes_text[0] ? " (all ranks are one node)"
                                                                                 : "",
             overlap_text);
}
