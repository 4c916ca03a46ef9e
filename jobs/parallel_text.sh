#!/usr/bin/env bash
# usage: jobs/parallel_text.sh [-o DIR] LANG...
#
# Get real parallel text on a Debian machine: the package descriptions that apt has in English and in other
# languages (de, fr, cs, ...). They are joined by the checksum of the English text, and written as
# DIR/LANG-en.LANG and DIR/LANG-en.en, line by line, for
#
#   stablemoe prepare --pair de-en DIR/de-en.de DIR/de-en.en ... -o pairs.h5
#
# One line is the short description of a package, or a paragraph of its long one if both texts have equally
# many. apt downloads them from the machine's own sources to a directory of its own, DIR/apt: the machine's
# lists stay as they are, and no rights of an administrator are needed.
#   -o DIR   where the texts go (default: parallel-text)
set -euo pipefail
export LC_ALL=C # decimal points, whatever the language is

output=parallel-text languages=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    -o) [ $# -gt 1 ] || { echo "parallel_text.sh: -o needs a directory" >&2; exit 2; }; output=$2; shift ;;
    -*) echo "parallel_text.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
    *) [[ $1 =~ ^[a-z][a-z](_[A-Z][A-Z])?$ && $1 != en ]] ||
         { echo "parallel_text.sh: '$1' is not a language other than English, such as de or pt_BR" >&2; exit 2; }
       languages+=("$1") ;;
  esac
  shift
done
[ ${#languages[@]} -gt 0 ] || { echo "parallel_text.sh: no language is named; see --help" >&2; exit 2; }
command -v apt-get >/dev/null || { echo "parallel_text.sh: this machine has no apt-get" >&2; exit 2; }

mkdir -p "$output/apt/state/lists/partial" "$output/apt/cache/archives/partial"
output=$(cd "$output" && pwd)
{
  echo "#clear Acquire::Languages;"
  echo "Acquire::Languages { \"en\"; $(printf '"%s"; ' "${languages[@]}")};"
  echo "Dir::State \"$output/apt/state\"; Dir::State::status \"$output/apt/status\";"
  echo "Dir::Cache \"$output/apt/cache\"; APT::Sandbox::User \"\";"
  echo "Acquire::IndexTargets::deb::Packages::DefaultEnabled \"false\";"
} >"$output/apt/apt.conf"
: >"$output/apt/status"
if ! apt-get -c "$output/apt/apt.conf" update >"$output/apt/log" 2>&1 </dev/null; then
  tail -n 20 "$output/apt/log" >&2
  echo "parallel_text.sh: apt-get could not get the package descriptions" >&2
  exit 3
fi

# One record per description on standard output: checksum, a tab, and its lines with tabs between them.
descriptions() {
  local list
  for list in "$output"/apt/state/lists/*_i18n_Translation-"$1"{,.*}; do
    [ -f "$list" ] || continue
    /usr/lib/apt/apt-helper cat-file "$list"
  done | awk '
    function finish() { if (sum != "" && text != "") print sum "\t" text; sum = text = "" }
    /^$/ { finish(); inside = 0; next }
    /^Description-md5: / { sum = $2; inside = 0; next }
    /^Description-[a-zA-Z_]+: / { sub(/^[^ ]+ /, ""); gsub(/\t/, " "); text = $0; inside = 1; next }
    /^ / && inside { gsub(/\t/, " "); text = text "\t" $0; next }
    { inside = 0 }
    END { finish() }' | LC_ALL=C sort -u -t "$(printf '\t')" -k 1,1
}

descriptions en >"$output/apt/en"
for language in "${languages[@]}"; do
  descriptions "$language" >"$output/apt/$language"
  if ! [ -s "$output/apt/$language" ]; then
    echo "parallel_text.sh: the machine's package sources have no descriptions in '$language'" >&2
    exit 2
  fi
  # Join by checksum; paragraphs end at " ." and at indented lines, which are lists and the like.
  awk -F '\t' -v "to=$output/$language-en" -v "language=$language" '
    function paragraphs(from, into,    i, n, line, open) {
      n = 1; into[1] = from[2]; open = 0
      for (i = 3; i in from; i++) {
        line = substr(from[i], 2)
        if (line == "." || line ~ /^ /) { open = 0; if (line != ".") into[++n] = line; continue }
        if (open) into[n] = into[n] " " line; else into[++n] = line
        open = 1
      }
      return n
    }
    NR == FNR { english[$1] = $0; next }
    $1 in english {
      split("", a); split("", b); split("", x); split("", y)
      split(english[$1], a, "\t"); split($0, b, "\t")
      n = paragraphs(a, x); m = paragraphs(b, y)
      for (i = 1; i <= (n == m ? n : 1); i++) {
        gsub(/^ +| +$/, "", x[i]); gsub(/^ +| +$/, "", y[i])
        # What is not translated, and what was written before, teaches nothing.
        if (x[i] == "" || y[i] == "" || x[i] == y[i] || seen[x[i], y[i]]++) continue
        print x[i] > (to ".en"); print y[i] > (to "." language); count++
      }
    }
    END { printf "%s-en: %d pairs in %s.%s and .en\n", language, count, to, language }' \
    "$output/apt/en" "$output/apt/$language"
done
