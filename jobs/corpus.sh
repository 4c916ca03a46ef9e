#!/usr/bin/env bash
# usage: jobs/corpus.sh [-o CORPUS.h5] [--text DIR] [--vocab N] [--text-only]
#
# A corpus of some 60 million tokens of English and code that every Debian 12 machine can make: the kernel's
# documentation, the core of its source (kernel, mm, fs, net, lib, block, ipc, security, crypto, include/linux), and
# the documentation of Python and Perl. Downloads 200 MB by apt-get, without an administrator's rights, takes 200 MB
# of text out of the packages, and prepares it.
#
#   -o CORPUS.h5   the corpus (default runs/debian.h5)
#   --text DIR     where the text goes, some 200 MB (default runs/debian-text; a text that is whole is kept)
#   --vocab N      pieces of the vocabulary (default 4096)
#   --text-only    stop when the text is there
#
# The same versions of the packages, which are printed and stand in DIR/VERSIONS, give the same corpus with the same
# fingerprint. Security updates change versions.
set -euo pipefail
export LC_ALL=C # order of files and decimal points, whatever the language is

corpus=runs/debian.h5 text=runs/debian-text vocab=4096 only=''
fail() { echo "corpus: $1" >&2; exit "${2:-2}"; }
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --text-only) only=1 ;;
    -o | --text | --vocab)
      [ $# -gt 1 ] || fail "$1 needs a value; see --help"
      case "$1" in
        -o) corpus=$2 ;;
        --text) text=$2 ;;
        --vocab) vocab=$2 ;;
      esac
      shift ;;
    *) fail "unknown argument '$1'; see --help" ;;
  esac
  shift
done
[[ $vocab =~ ^[1-9][0-9]*$ ]] || fail "--vocab must be a number, not '$vocab'"
corpus=$(realpath -m "$corpus") text=$(realpath -m "$text")
cd "$(dirname "$0")/.."
[ -n "$only" ] || [ -x build/stablemoe ] || fail "there is no build/stablemoe: meson setup build && ninja -C build"
for tool in apt-get dpkg-deb tar xz; do
  command -v $tool >/dev/null || fail "this machine has no $tool: the text comes out of Debian's packages"
done

packages=(linux-doc-6.1 linux-source-6.1 perl-doc python3.11-doc)
if [ -f "$text/VERSIONS" ]; then
  echo "the text in $text is there"
else
  rm -rf "$text" "$text.part"
  mkdir -p "$text.part/packages" "$(dirname "$corpus")"
  echo "Downloading ${packages[*]}"
  (cd "$text.part/packages" && apt-get -qq -o APT::Sandbox::User= download "${packages[@]}") ||
    fail "apt-get cannot download ${packages[*]}: is this Debian 12, with its lists up to date (apt-get update)?" 3
  echo "Taking the text out of the packages"
  cd "$text.part"
  for package in "${packages[@]}"; do dpkg-deb -x packages/"${package}"_*.deb out; done
  mkdir documentation source
  cp -r out/usr/share/doc/linux-doc-6.1/html/_sources documentation/linux
  rm -rf documentation/linux/translations
  cp -r out/usr/share/doc/python3.11/html/_sources documentation/python
  mkdir documentation/perl
  find out/usr/share/perl -name '*.pod' -exec cp {} documentation/perl/ \;
  tree=linux-source-6.1
  parts=(block crypto fs include/linux ipc kernel lib mm net security)
  tar -xJf out/usr/src/$tree.tar.xz -C source "${parts[@]/#/$tree/}"
  for package in "${packages[@]}"; do
    dpkg-deb -W --showformat='${Package} ${Version}\n' packages/"${package}"_*.deb
  done >VERSIONS
  rm -rf out packages
  cd - >/dev/null
  mv "$text.part" "$text"
fi
cat "$text/VERSIONS"
[ -z "$only" ] || exit 0
# shellcheck source=jobs/environment.sh
. jobs/environment.sh
exec build/stablemoe prepare "$text/documentation" "$text/source" --ext .c,.h,.S,.pod,.rst,.txt --vocab "$vocab" \
  --valid 0.01 --test 0.01 -o "$corpus"
