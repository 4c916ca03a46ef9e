# What Open MPI and OpenMP should know before a run; for scripts to source, and for people who run by hand:
#   source jobs/environment.sh
# What is set already stays as it is.

# One thread per rank, unless told otherwise: ranks are the parallelism, and more threads than cores cost dearly.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

# Containers and CI machines run as root, which mpirun asks about.
if [ "$(id -u)" = 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT="${OMPI_ALLOW_RUN_AS_ROOT:-1}"
  export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM:-1}"
fi

# What Open MPI's file access and HDF5 need, stablemoe sets by itself before MPI starts.

# With Slurm's default way to let ranks wait for each other in MPI_Init, one launch in five over four nodes crashed
# or hung there (Slurm 22.05, Open MPI 4.1.4; open-mpi/ompi issue 12495 is alike); with this one none in 120 did.
export SLURM_PMIX_FENCE="${SLURM_PMIX_FENCE:-ring}"

# On one machine, outside of a batch system: runs beside each other would all be bound to the first cores,
# and more ranks than cores have to give way to each other while they wait.
if [ -z "${SLURM_JOB_ID:-}${PBS_JOBID:-}${LSB_JOBID:-}" ]; then
  export OMPI_MCA_hwloc_base_binding_policy="${OMPI_MCA_hwloc_base_binding_policy:-none}"
  export OMPI_MCA_rmaps_base_oversubscribe="${OMPI_MCA_rmaps_base_oversubscribe:-1}"
  export OMPI_MCA_mpi_yield_when_idle="${OMPI_MCA_mpi_yield_when_idle:-1}"
fi
