#!/usr/bin/env bash
# usage: jobs/cluster.sh up [NODES] [OPTION]...
#        jobs/cluster.sh run COMMAND...       run COMMAND on the cluster's login node
#        jobs/cluster.sh status               nodes, jobs and links
#        jobs/cluster.sh fail NODE [--cut]    end everything on a node, as in a crash; --cut: its link too
#        jobs/cluster.sh repair NODE          start it again
#        jobs/cluster.sh down                 end and remove everything
#        jobs/cluster.sh check                say whether this machine can have a cluster
#
# A Slurm cluster of several virtual nodes on this machine, to try batch jobs and slow networks on: a real
# munged and slurmctld, and one slurmd per node, each node with a network, host name, processes, /tmp and
# /dev/shm of its own (Linux namespaces). All other directories are shared, as on a cluster's file system.
# Nothing of it can be seen outside: a Slurm that the machine may have is not touched, and `down` leaves nothing.
#
#   NODES              1 to 64 nodes, n1 to nNODES (default 4)
#   --cpus N           CPUs that Slurm is told of on each node, whatever the machine has (default 4)
#   --bandwidth RATE   of each node's link, in both directions: 1gbit, 200mbit (tc's units; default: no limit)
#   --latency TIME     added to what each node sends: 100us, 2ms; where the kernel has netem
#   --with PID         take the cluster down when the process PID ends
#   --share DIR        a directory below /tmp or /dev/shm that the nodes shall see; this checkout and the working
#                      directory are seen anyway
#
# It wants root, and Debian's slurmctld, slurmd, slurm-client, munge, iproute2 (jobs/install.sh --slurm).
# STABLEMOE_CLUSTER names the cluster (default smoe), so that several can be up.
set -euo pipefail
export LC_ALL=C # decimal points, whatever the language is

here=$(cd "$(dirname "$0")" && pwd)
checkout=$(dirname "$here")
name=${STABLEMOE_CLUSTER:-smoe}
state=/run/stablemoe/$name
subnet=10.77.0
login=254 # host number of the login node

fail() { echo "cluster: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; }
misuse() { echo "cluster: $*; see --help" >&2; exit 2; }

namespace() { echo "$name-$1"; }               # of node number $1, or of `login`
processes() { ip netns pids "$(namespace "$1")" 2>/dev/null || true; } # of all that runs there
namespaces() { ip netns list 2>/dev/null | awk -v name="$name-" 'index($1, name) == 1 {print substr($1, length(name) + 1)}'; }
controller() { # the slurmctld's process, if it runs
  local pid
  for pid in $(processes login); do
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = slurmctld ] && echo "$pid" && return
  done
  return 1
}
nodes() { cat "$state/nodes" 2>/dev/null || echo 0; }

# Other Slurm jobs' and clusters' settings must not reach this one.
forget_slurm() {
  local variable
  for variable in $(compgen -e | grep -E '^(SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SINFO|SCANCEL|SCONTROL|PMIX?|OMPI_COMM)_' || true); do
    unset "$variable"
  done
  export SLURM_CONF=$state/slurm.conf
}

# ---- what it needs ----

check_machine() {
  [ "$(uname -s)" = Linux ] || fail "namespaces are Linux's: this is $(uname -s)"
  [ "$(id -u)" = 0 ] || fail "a virtual cluster needs root (for namespaces): run it by sudo, or in a container of its own"
  local command missing=()
  for command in slurmctld slurmd sinfo munged ip tc nsenter unshare; do
    PATH=$PATH:/usr/sbin:/sbin type -P "$command" >/dev/null || missing+=("$command")
  done
  [ ${#missing[@]} = 0 ] || fail "missing: ${missing[*]}; on Debian jobs/install.sh --slurm brings them"
  unshare --net --uts --mount --ipc --pid --fork true 2>/dev/null ||
    fail "this machine lets root make no namespaces (a container without --privileged?)"
  unshare --net sh -c 'ip link add br0 type bridge && ip link add name veth0 type veth peer name veth1' 2>/dev/null ||
    fail "this kernel has no bridges, or no veth links"
}

# ---- the network: a bridge on the login node, a link to every node; none of it in the machine's own namespace ----

shape() { # shape NODE: both ends of its link, so that both directions are as fast as asked for
  local node=$1 end command
  for end in "login b$node" "$node eth0"; do
    command="ip netns exec $(namespace "${end% *}") tc qdisc add dev ${end#* }"
    if [ -n "$latency" ] && [ "${end% *}" != login ]; then
      $command root handle 1: netem delay "$latency" limit 100000 ||
        fail "tc does not take the latency '$latency': write it like 100us or 2ms"
      command+=" parent 1:1"
    else
      command+=" root"
    fi
    [ -z "$bandwidth" ] || $command tbf rate "$bandwidth" burst 128kb latency 50ms ||
      fail "tc does not take the bandwidth '$bandwidth': write it like 1gbit or 200mbit"
  done
}

make_network() {
  local node bridge
  bridge="ip -n $(namespace login)"
  ip netns add "$(namespace login)"
  $bridge link set lo up
  $bridge link add br0 type bridge
  $bridge addr add "$subnet.$login/24" dev br0
  $bridge link set br0 up
  for node in $(seq "$n_nodes"); do
    ip netns add "$(namespace "$node")"
    $bridge link add "b$node" type veth peer name eth0 netns "$(namespace "$node")"
    $bridge link set "b$node" master br0 up
    ip -n "$(namespace "$node")" addr add "$subnet.$node/24" dev eth0
    ip -n "$(namespace "$node")" link set lo up
    ip -n "$(namespace "$node")" link set eth0 up
  done
  if [ -n "$latency" ] && ! ip netns exec "$(namespace login)" tc qdisc add dev lo root netem delay 1us 2>/dev/null; then
    echo "cluster: this kernel has no netem: --latency $latency is left out, links are as fast to answer as they are"
    latency=
  fi
  ip netns exec "$(namespace login)" tc qdisc del dev lo root 2>/dev/null || true
  for node in $(seq "$n_nodes"); do shape "$node"; done
}

# ---- Slurm ----

write_configuration() {
  local memory node
  memory=$(awk -v n="$n_nodes" '/^MemTotal/ {printf "%d", $2 / 1024 / n}' /proc/meminfo)
  for node in $(seq "$n_nodes"); do mkdir -p "$state/spool/n$node"; done
  mkdir -p "$state/spool/login" "$state/log" "$state/share"
  {
    echo "127.0.0.1 localhost"
    echo "$subnet.$login login"
    for node in $(seq "$n_nodes"); do echo "$subnet.$node n$node"; done
  } >"$state/hosts"
  # Requeued jobs wait until the credentials of their last start are invalid: shortly, here.
  cat >"$state/slurm.conf" <<END
ClusterName=$name
SlurmctldHost=login($subnet.$login)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket=$state/munge.socket,cred_expire=5
MpiDefault=pmix
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation=$state/spool/login
SlurmdSpoolDir=$state/spool/%n
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd-%n.pid
SlurmctldLogFile=$state/log/slurmctld
SlurmdLogFile=$state/log/%n
SlurmdTimeout=10
KillWait=10
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
DefMemPerCPU=$((memory / cpus))
NodeName=n[1-$n_nodes] CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
END
  [ "$n_nodes" -gt 1 ] || sed -i 's/n\[1-1\]/n1/' "$state/slurm.conf"
  echo "CgroupAutomount=no" >"$state/cgroup.conf"
  printf '%s\n' "$n_nodes" >"$state/nodes"
  printf '%s\n' "bandwidth ${bandwidth:-unlimited}, added latency ${latency:-none}" >"$state/links"
  head -c 1024 /dev/urandom >"$state/munge.key"
  chmod 400 "$state/munge.key"
}

enter_login() { nsenter --net="/run/netns/$(namespace login)" unshare --uts --mount "$here/cluster/node.sh" "$@"; }

start_controller() {
  enter_login login "$state" munged --force --key-file="$state/munge.key" --socket="$state/munge.socket" \
    --pid-file="$state/munged.pid" --log-file="$state/log/munged" --seed-file="$state/munge.seed" </dev/null \
    >"$state/log/start" 2>&1 || { cat "$state/log/start" >&2; fail "munged does not start"; }
  enter_login login "$state" slurmctld -c -f "$state/slurm.conf" </dev/null >"$state/log/start" 2>&1 ||
    { cat "$state/log/start" >&2; fail "slurmctld does not start; see $state/log/slurmctld"; }
}

# With processes of its own, so that they all end with the first of them, and a session of its own, so that a
# Ctrl-C at the terminal ends none.
start_node() {
  setsid nsenter --net="/run/netns/$(namespace "$1")" unshare --uts --mount --ipc --pid --fork --kill-child --mount-proc \
    "$here/cluster/node.sh" "n$1" "$state" slurmd -D -N "n$1" -f "$state/slurm.conf" \
    </dev/null >"$state/log/start-n$1" 2>&1 &
  disown
}

idle() { [ "$(sinfo_quietly -h -N -t idle -o %N | sort -u | wc -l)" -ge "$1" ]; }
sinfo_quietly() { in_login sinfo "$@" 2>/dev/null; }

# ---- commands ----

in_login() {
  local pid
  pid=$(controller) || fail "there is no cluster '$name' that runs: jobs/cluster.sh up"
  # The namespace of mounts begins at /.
  nsenter --target "$pid" --net --uts --mount -- /bin/sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
}

wait_for() { # wait_for SECONDS WHAT COMMAND...
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $limit ] || fail "$what did not happen in time; the logs are in $state/log"
    sleep 0.2
  done
}

end_processes() { # end_processes NODE: the kernel ends all of a node with its first process
  local pids tries
  for tries in $(seq 50); do
    pids=$(processes "$1")
    [ -n "$pids" ] || return 0
    # shellcheck disable=SC2086
    kill -KILL $pids 2>/dev/null || true
    sleep 0.05
  done
  echo "cluster: these processes of $(namespace "$1") do not end after $tries attempts:" $pids >&2
}

down() {
  [ "$(id -u)" = 0 ] || fail "only root can have a virtual cluster here"
  local one all
  all=$(namespaces)
  for one in login $all; do end_processes "$one"; done
  for one in $all; do ip netns del "$(namespace "$one")" 2>/dev/null || true; done
  rm -rf "$state"
  rmdir /run/stablemoe 2>/dev/null || true
}

up() {
  check_machine
  ! controller >/dev/null || fail "the cluster '$name' is up already, with $(nodes) nodes: jobs/cluster.sh status, or down"
  down # what an interrupted one left
  mkdir -p "$state"
  chmod 755 /run/stablemoe "$state"
  printf '%s\n' "$checkout" "$PWD" ${shares[@]+"${shares[@]}"} >"$state/shares"
  # Half a cluster is of no use to anyone.
  trap 'down' EXIT
  trap 'exit 130' INT TERM HUP
  make_network
  write_configuration
  start_controller
  local node
  for node in $(seq "$n_nodes"); do start_node "$node"; done
  wait_for 60 "that all nodes are idle" idle "$n_nodes"
  # The first launch after the start can fail: let it be this one.
  local attempt good=no
  for attempt in 1 2 3 4 5; do
    if in_login timeout 30 srun -N "$n_nodes" --mpi=none --immediate=20 true >"$state/log/hello" 2>&1; then
      good=yes
      break
    fi
    sleep "$attempt"
  done
  [ $good = yes ] || { cat "$state/log/hello" >&2; fail "the nodes run nothing; the logs are in $state/log"; }
  trap - EXIT INT TERM HUP
  if [ -n "$process" ]; then
    setsid bash -c 'tail --pid="$1" -s 0.5 -f /dev/null; exec "$0" down' "$here/cluster.sh" "$process" </dev/null >/dev/null 2>&1 &
    disown
  fi
  echo "cluster: $n_nodes nodes of $cpus CPUs are up; $(cat "$state/links")"
}

run() {
  # More ranks than cores are the rule on such nodes: let waiting ones give way, and bind none. The last one is
  # jobs/environment.sh's, which knows why.
  export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_rmaps_base_oversubscribe=1 \
    SLURM_PMIX_FENCE="${fence:-ring}"
  in_login "$@"
}

status() {
  controller >/dev/null || { echo "cluster: '$name' is down"; return 1; }
  echo "cluster '$name': $(nodes) nodes; links: $(cat "$state/links")"
  in_login sinfo -N -p all -o '%10N %12T %6c %10m %E'
  in_login squeue -o '%10i %20j %10T %6D %12M %R'
}

node_number() {
  controller >/dev/null || fail "there is no cluster '$name' that runs: jobs/cluster.sh up"
  local number=${1#n}
  case "$number" in '' | *[!0-9]*) misuse "'$1' is no node: n1 to n$(nodes)" ;; esac
  [ "$number" -ge 1 ] && [ "$number" -le "$(nodes)" ] || misuse "'$1' is no node: n1 to n$(nodes)"
  echo "$number"
}

positive() { case "$2" in '' | *[!0-9]* | 0*) misuse "$1 must be a number, got '$2'" ;; esac; }

export PATH=$PATH:/usr/sbin:/sbin
fence=${SLURM_PMIX_FENCE:-}
command=${1:---help}
[ $# = 0 ] || shift
forget_slurm
case "$command" in
  up)
    n_nodes=4 cpus=4 bandwidth='' latency='' process='' shares=()
    while [ $# -gt 0 ]; do
      case "$1" in
        --cpus | --bandwidth | --latency | --with | --share)
          [ $# -ge 2 ] || misuse "$1 needs a value"
          case "$1" in
            --cpus) cpus=$2 ;;
            --bandwidth) bandwidth=$2 ;;
            --latency) latency=$2 ;;
            --with) process=$2 ;;
            --share) shares+=("$(realpath -e "$2")") ;;
          esac
          shift 2 ;;
        -*) misuse "unknown option '$1'" ;;
        *) n_nodes=$1; shift ;;
      esac
    done
    positive NODES "$n_nodes"
    positive --cpus "$cpus"
    [ -z "$process" ] || positive --with "$process"
    [ "$n_nodes" -le 64 ] || misuse "64 nodes are the most"
    up ;;
  run) [ $# -gt 0 ] || misuse "run what?"; run "$@" ;;
  status) status ;;
  fail)
    number=$(node_number "${1:-}")
    [ "${2:-}" != --cut ] || ip -n "$(namespace login)" link set "b$number" down
    end_processes "$number" ;;
  repair)
    number=$(node_number "${1:-}")
    end_processes "$number"
    ip -n "$(namespace login)" link set "b$number" up
    start_node "$number" ;;
  down) down ;;
  check) check_machine ;;
  -h | --help) usage ;;
  *) misuse "unknown command '$command'" ;;
esac
