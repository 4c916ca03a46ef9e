#!/usr/bin/env bash
# usage: jobs/install.sh [--test] [--slurm]
#
# Make sure that everything StableMoE is built with and runs on is there. What is missing is installed from
# Debian's packages where this user may do that (root, or sudo without a password); elsewhere the packages
# and cluster modules to load are named, and the exit status is 2. Where nothing is missing, nothing is done
# and no network is needed.
#   --test   also what only tests use (clang-format; clang with its fuzzer; groff; chromium with its
#            driver and python3-selenium; python3-xarray, -h5netcdf and -pandas), if it can be had; without it those
#            tests are skipped (with --slurm's)
#   --slurm  also what jobs/cluster.sh makes a cluster of (Slurm, munge, iproute2); no daemon is started
#
# Another apt that is at work is waited for, STABLEMOE_APT_WAIT seconds at most (default 600).
set -euo pipefail
export LC_ALL=C # decimal points, whatever the language is

with_test=no with_slurm=no
for argument in "$@"; do
  case "$argument" in
    --test) with_test=yes with_slurm=yes ;;
    --slurm) with_slurm=yes ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) echo "install.sh: unknown argument '$argument'; see --help" >&2; exit 2 ;;
  esac
done

command_there() { command -v "$1" >/dev/null 2>&1; }
package_there() { # any of these pkg-config names
  command_there pkg-config || return 1
  local name
  for name in "$@"; do pkg-config --exists "$name" 2>/dev/null && return 0; done
  return 1
}
header_there() { echo "#include <$1>" | ${CXX:-c++} -x c++ -E - >/dev/null 2>&1; }
python_has() { # the interpreter that analysis/ would choose
  local python
  for python in "${STABLEMOE_PYTHON:-}" python3 /usr/bin/python3; do
    [ -n "$python" ] && "$python" -c "import $1" >/dev/null 2>&1 && return 0
  done
  return 1
}
cc_works() { echo 'int main(void) { return 0; }' | ${CC:-cc} -x c -o /dev/null - >/dev/null 2>&1; }
cxx_works() { echo '#include <string>' | ${CXX:-c++} -x c++ -c -o /dev/null - >/dev/null 2>&1; }
fuzzer_works() {
  echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return n > 9 && d[0]; }' |
    clang -fsanitize=fuzzer -x c -o /dev/null - >/dev/null 2>&1
}
mpi_there() { command_there mpirun && { package_there ompi-c mpi-c mpi || command_there mpicc; }; }
hdf5_there() { package_there hdf5-openmpi hdf5-mpi || { package_there hdf5 && command_there h5pcc; }; }

# One line each: Debian package | what a cluster calls it | how to see that it is there
requirements() {
  cat <<'LIST'
gcc|a C11 compiler: module gcc|cc_works
g++|a C++17 compiler: module gcc|cxx_works
meson|meson 1.0 or later: module meson, or build it with the site's Python|command_there meson
ninja-build|ninja: module ninja|command_there ninja
pkg-config|pkg-config or pkgconf|command_there pkg-config
libopenmpi-dev openmpi-bin|Open MPI 4.1 or later: module openmpi|mpi_there
libhdf5-openmpi-dev|HDF5 built for that MPI: module hdf5/...-mpi or phdf5|hdf5_there
libopenblas-openmp-dev|OpenBLAS built with OpenMP: module openblas|package_there openblas
libarchive-dev|libarchive 3.6 or later: module libarchive|package_there libarchive
libjansson-dev|Jansson 2.13 or later: module jansson|package_there jansson
libyaml-dev|libyaml: module libyaml|package_there yaml-0.1
libpng-dev|libpng with its headers: module libpng|package_there libpng
zlib1g-dev|zlib with its headers: module zlib|package_there zlib
libxxhash-dev|xxHash 0.8: module xxhash|package_there libxxhash
libsentencepiece-dev|SentencePiece with its headers: module sentencepiece|package_there sentencepiece
librandom123-dev|Random123 headers: module random123, or set CPATH to them|header_there Random123/philox.h
python3|Python 3.10 or later: module python|command_there python3
python3-numpy|numpy: module scipy-bundle|python_has numpy
python3-h5py|h5py: module h5py|python_has h5py
python3-matplotlib|matplotlib: module matplotlib|python_has matplotlib
python3-yaml|PyYAML: module pyyaml|python_has yaml
LIST
}

wait=${STABLEMOE_APT_WAIT:-600}
case "$wait" in
  "" | *[!0-9]*) echo "install.sh: STABLEMOE_APT_WAIT is '$wait': a number of seconds expected" >&2; exit 2 ;;
esac

missing=() hints=()
check() {
  missing=() hints=()
  local packages hint test
  while IFS='|' read -r packages hint test; do
    $test && continue
    # shellcheck disable=SC2206
    missing+=($packages)
    hints+=("$packages"$'\t'"$hint")
  done < <(requirements)
}

run_apt() { # apt-get as whoever may; its messages in English, for they are read below
  local command=(env LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get -o "DPkg::Lock::Timeout=$wait" "$@")
  [ "$(id -u)" = 0 ] || command=(sudo -n "${command[@]}")
  "${command[@]}" </dev/null
}
locked() { grep -qE '^E: (Could not get lock|Unable to lock|Unable to acquire)' "$log"; }
# The option above waits for dpkg's lock; those of the package lists and of the archives are tried again here.
apt() {
  local limit=$((SECONDS + wait)) told=no
  until run_apt "$@" >"$log" 2>&1; do
    { locked && [ "$SECONDS" -lt "$limit" ]; } || return 1
    [ $told = yes ] || echo "install: another apt is at work; waiting for it for at most $wait s"
    told=yes
    sleep 1
  done
}
why() { # the reason why apt failed
  local unknown
  unknown=$(sed -nE "s/^E: Unable to locate package (.*)/\1/p; s/^E: Package '(.*)' has no installation candidate/\1/p" "$log")
  if locked; then
    echo "another apt held its lock for $wait s: try again when it is done (STABLEMOE_APT_WAIT: seconds to wait)"
  elif [ -n "$unknown" ]; then
    echo "not in this system's package lists:" $unknown
  else
    sed -n '/^E: /{s///p;q}' "$log" | grep . || echo "apt-get failed: $(tail -n 1 "$log")"
  fi
}
may_install() {
  command_there apt-get || return 1
  [ "$(id -u)" = 0 ] || { command_there sudo && sudo -n true >/dev/null 2>&1; }
}

check
wished=()
header_there oneapi/dnnl/dnnl.h || wished+=(libdnnl-dev) # faster products on AVX-512; the build does without
if [ "$with_test" = yes ]; then
  command_there clang-format || wished+=(clang-format)
  fuzzer_works || wished+=(clang libclang-rt-14-dev)
  [ -e /usr/share/i18n/locales/de_DE ] || wished+=(locales) # a language with decimal commas
  command_there groff || wished+=(groff-base) # warnings in the man page
  # the report in a browser, and the log in xarray and pandas
  command_there chromium || wished+=(chromium)
  command_there chromedriver || wished+=(chromium-driver)
  for module in selenium xarray h5netcdf pandas; do python_has "$module" || wished+=("python3-$module"); done
fi
if [ "$with_slurm" = yes ]; then
  PATH=$PATH:/usr/sbin:/sbin
  for command in slurmctld slurmd sinfo:slurm-client munged:munge ip:iproute2; do
    command_there "${command%:*}" || wished+=("${command#*:}")
  done
fi
if [ ${#missing[@]} = 0 ] && [ ${#wished[@]} = 0 ]; then
  echo "install: everything is there"
  exit 0
fi

if may_install; then
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  # A daemon that a package brings shall not start here: a virtual cluster starts its own.
  if [ "$with_slurm" = yes ] && [ "$(id -u)" = 0 ] && [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f "$log" /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
  fi
  if [ ${#missing[@]} -gt 0 ]; then
    echo "install: from Debian's packages: ${missing[*]}"
    if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; }; then
      tail -n 20 "$log" >&2
      echo "install: apt-get could not install: ${missing[*]}: $(why)" >&2
      exit 2
    fi
  else
    apt update || echo "install: the package lists could not be renewed: $(why)"
  fi
  if [ ${#wished[@]} -gt 0 ]; then
    # One that cannot be had must not keep the others away.
    if ! apt install -y --no-install-recommends "${wished[@]}"; then
      # Behind a lock that was held so long, waiting once for each package would take hours.
      if locked; then
        echo "install: not installed: ${wished[*]}: $(why)"
      else
        for package in "${wished[@]}"; do
          apt install -y --no-install-recommends "$package" ||
            echo "install: not installed: $package: $(why); tests that need it are skipped"
        done
      fi
    fi
  fi
  hash -r
  check
elif [ ${#missing[@]} = 0 ]; then
  echo "install: everything is there but ${wished[*]}; tests that need it are skipped"
fi
if [ ${#missing[@]} -gt 0 ]; then
  {
    echo "install: these are missing, and this user cannot install packages here."
    echo "On Debian or Ubuntu, ask an administrator for"
    echo "  apt-get install --no-install-recommends ${missing[*]}"
    echo "On a cluster, load modules that bring the following, so that pkg-config and PATH show them:"
    for hint in "${hints[@]}"; do printf '  %-28s %s\n' "${hint%%$'\t'*}" "${hint#*$'\t'}"; done
  } >&2
  exit 2
fi
