#!/usr/bin/env bash
# Builds the fuzz targets and fuzzes each for a while; prints one row per target.
#
#   tests/fuzz/run.sh                         every target, 5 s each
#   tests/fuzz/run.sh --seconds 600 tcp_lane  one target for ten minutes
#   tests/fuzz/run.sh --keep                  afterwards takes over what it found into the corpus,
#                                             minimised
#   tests/fuzz/run.sh --jobs 4                targets side by side; default: the number of cores
#
# A finding is minimised and left in build/fuzz/findings; the table says how to replay it. Exit
# status 1 when there is one.
set -uo pipefail
cd "$(dirname "$0")/../.."

seconds=5
keep=0
jobs=$(nproc)
targets=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --seconds) shift; seconds=${1:?--seconds needs a number} ;;
    --jobs) shift; jobs=${1:?--jobs needs a number} ;;
    --keep) keep=1 ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "tests/fuzz/run.sh: unknown option $1; see --help" >&2; exit 2 ;;
    *) targets+=("$1") ;;
  esac
  shift
done

build=build/fuzz
mkdir -p "$build"
if ! cmake --preset fuzz >"$build/run.log" 2>&1 ||
  ! cmake --build --preset fuzz -j "$(nproc)" >>"$build/run.log" 2>&1; then
  grep -E 'error|FAILED' "$build/run.log" | head -20
  echo "the fuzz targets do not build; all of it is in $build/run.log"
  exit 1
fi
if [[ ${#targets[@]} -eq 0 ]]; then
  mapfile -t targets < <("$build/bin/fuzz_corpus" --list)
fi
fuzz=$PWD/$build/bin/kvl_fuzz
corpus=tests/fuzz/corpus
findings=$build/findings
mkdir -p "$findings" "$build/corpus" "$build/logs"
# Small inputs must not make a decoder take much memory, and no input may take long.
limits=(-malloc_limit_mb=256 -rss_limit_mb=2048 -timeout=20 -max_len=16384)
export UBSAN_OPTIONS=print_stacktrace=1 ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=0
symbolizer=$(command -v llvm-symbolizer-14 || true)
[[ -n $symbolizer ]] && export ASAN_SYMBOLIZER_PATH=$symbolizer

fuzz_one() {
  local target=$1 log=$build/logs/$1.log work=$build/corpus/$1
  mkdir -p "$work" "$corpus/$target"
  rm -f "$findings/$target-"*
  "$build/bin/fuzz_corpus" "$target" --seeds "$build/seeds/$target" >"$log" 2>&1
  "$fuzz" "--target=$target" "${limits[@]}" -max_total_time="$seconds" -print_final_stats=1 \
    -artifact_prefix="$findings/$target-" "$work" "$corpus/$target" "$build/seeds/$target" \
    >>"$log" 2>&1
}
running=0
for target in "${targets[@]}"; do
  fuzz_one "$target" &
  running=$((running + 1))
  if [[ $running -ge $jobs ]]; then
    wait -n
    running=$((running - 1))
  fi
done
wait

minimise() {  # a shorter input with the same effect, where there is one
  local input=$1 target=$2
  "$fuzz" "--target=$target" "${limits[@]}" -minimize_crash=1 -max_total_time=10 \
    -exact_artifact_path="$input.min" "$input" >>"$build/logs/$target.log" 2>&1
  [[ -s $input.min ]] && mv "$input.min" "$input"
  return 0
}

found=0
printf '%-20s %12s %8s %9s %8s  %s\n' target executions edges 'features' corpus findings
for target in "${targets[@]}"; do
  log=$build/logs/$target.log
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
  last=$(grep -E 'cov: [0-9]+ ft: [0-9]+' "$log" | tail -1)
  edges=$(sed -n 's/.*cov: \([0-9]*\).*/\1/p' <<<"$last")
  features=$(sed -n 's/.*ft: \([0-9]*\).*/\1/p' <<<"$last")
  kept=$(find "$corpus/$target" -type f | wc -l)
  said=-
  for input in "$findings/$target-"*; do
    [[ -f $input ]] || continue
    [[ $said == - ]] && said=
    minimise "$input" "$target"
    said+="$(grep -m1 -oE 'property violated: .*|SUMMARY: .*|ERROR: libFuzzer: .*' "$log") "
    said+="[replay: $build/bin/fuzz_corpus $target $input]"
    found=$((found + 1))
  done
  printf '%-20s %12s %8s %9s %8s  %s\n' "$target" "${runs:-?}" "${edges:-?}" "${features:-?}" \
    "$kept" "$said"
  # A target that did not run at all is a finding, too.
  [[ -n $runs || $said != - ]] || { tail -5 "$log"; found=$((found + 1)); }
done

if [[ $keep -eq 1 ]]; then
  for target in "${targets[@]}"; do
    merged=$build/merged/$target
    rm -rf "$merged" && mkdir -p "$merged"
    "$fuzz" "--target=$target" "${limits[@]}" -set_cover_merge=1 "$merged" "$corpus/$target" \
      "$build/seeds/$target" "$build/corpus/$target" >>"$build/logs/$target.log" 2>&1
    # Regressions have names and stay; what fuzzing found is replaced by the smaller set.
    find "$corpus/$target" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
    find "$merged" -type f -size -5k -exec cp {} "$corpus/$target/" \;
  done
  echo "corpora: $(find "$corpus" -type f | wc -l) files, $(du -sb "$corpus" | cut -f1) bytes"
fi
echo "${#targets[@]} targets, $seconds s each, findings: $found"
[[ $found -eq 0 ]]
