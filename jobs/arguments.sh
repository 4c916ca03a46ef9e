# shellcheck shell=bash disable=SC2034 # the variables are for who sources this
# The command line of scripts that take one CONFIG and options with values; sourced by scaling.sh and network.sh.

die() { echo "$(basename "$0" .sh): $*" >&2; exit 2; }

# read_arguments "NAME..." WORD...: the WORDs into config, keys (-P, for stablemoe), out (-o), and for each --a-NAME
# the variable a_NAME, which holds its default. --help prints the comment at the head of the script.
read_arguments() {
  local names=" $1 "
  shift
  config='' out='' keys=()
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
      -P | -o | --*)
        [[ $1 != --* || $names == *" ${1#--} "* ]] || die "unknown option '$1'; see --help"
        [ $# -ge 2 ] || die "$1 needs a value; see --help"
        case "$1" in
          -P) keys+=(-P "$2") ;;
          -o) out=$2 ;;
          *) local name=${1#--}; printf -v "${name//-/_}" %s "$2" ;;
        esac
        shift 2 ;;
      -*) die "unknown option '$1'; see --help" ;;
      *)
        [ -z "$config" ] || die "one CONFIG only, not '$config' and '$1'"
        config=$1
        shift ;;
    esac
  done
}

# want_numbers WHAT VALUE...: each is a whole number from 1
want_numbers() {
  local what=$1 number
  shift
  for number; do [[ $number =~ ^[1-9][0-9]*$ ]] || die "'$number' is no number of $what"; done
}
