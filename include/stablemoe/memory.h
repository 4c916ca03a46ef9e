/** Memory that this process and those beside it can still take. */
#ifndef STABLEMOE_MEMORY_H
#define STABLEMOE_MEMORY_H

typedef struct smoe_memory {
  double bytes;    /**< for all processes of the job on this machine together; 0: unknown */
  char limit[320]; /**< what bounds it, for a report: "the free memory of this machine", "the cgroup '/job'
                      (limit 512 MiB)", "the Slurm job (--mem: 512 MiB)" */
} smoe_memory;

/** The least of what the machine can give (MemAvailable), what the memory cgroups of this process leave (version 1 and
 *  2, all levels; page cache counts as free), and what Slurm granted the job on this node, less what this process has.
 *  Local.
 */
smoe_memory smoe_memory_free(void);

/** The same, with /proc and /sys below another directory. Local; for tests. */
smoe_memory smoe_memory_free_below(const char *root);

#endif
