#!/usr/bin/env bash
# Installs what is missing, builds, and runs the tests: release whole, ASan+UBSan on unit,
# conformance and fault tests, TSan on what has threads, a clang build with clang-tidy.
#
#   tests/run.sh              the default, what CI runs
#   tests/run.sh --all        slow suites and 5 s of fuzzing per target as well
#   tests/run.sh --quick      release only
#   tests/run.sh --only STEP  one of release, asan, tsan, tidy
set -uo pipefail
cd "$(dirname "$0")/.."

steps=(release asan tsan tidy)
slow=0
while [[ $# -gt 0 ]]; do
  case "$1" in
    --all) slow=1 ;;
    --quick) steps=(release) ;;
    --only) shift; steps=("${1:?--only needs a step}") ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "tests/run.sh: unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift
done

tools/setup.sh --tests || exit 1
jobs=$(nproc)
mkdir -p build
failed=()
results=()
for step in "${steps[@]}"; do
  begin=$SECONDS
  echo "== $step"
  log=build/$step.log
  # KVL_TESTS and KVL_BENCH are named: the demo may have configured this folder without them.
  if ! cmake --preset "$step" -DKVL_TESTS=ON -DKVL_BENCH=ON >"$log" 2>&1 ||
    ! cmake --build --preset "$step" -j "$jobs" -- -k 0 >>"$log" 2>&1; then
    grep -E 'error|FAILED|CMake Error' "$log" | head -40
    echo "== $step: the build failed; all of it is in $log"
    failed+=("$step")
    results+=("!$step")
    continue
  fi
  built=$((SECONDS - begin))
  result=$PWD/build/$step.xml
  rm -f "$result"
  args=(--preset "$step")
  if [[ $slow -eq 1 ]]; then
    # Presets leave slow tests out; run those with the same filter but without the exclusion.
    args=(--test-dir "build/$step")
    [[ $step == asan ]] && args+=(-L 'unit|conformance|fault')
    [[ $step == tsan ]] && args+=(-L tsan)
    [[ $step == tidy ]] && args+=(-L tidy)
  fi
  ctest "${args[@]}" -j "$jobs" --no-tests=error --output-on-failure --output-junit "$result" \
    --test-output-size-passed 4000000 || failed+=("$step")
  if [[ -f $result ]]; then results+=("$result"); else results+=("!$step"); fi
  echo "== $step: built in ${built} s, tested in $((SECONDS - begin - built)) s"
done

if [[ $slow -eq 1 ]]; then
  echo "== fuzz"
  tests/fuzz/run.sh --seconds 5 || failed+=(fuzz)
fi

echo "== all of it in $SECONDS s"
[[ ${#failed[@]} -gt 0 ]] && echo "FAILED: ${failed[*]}"
# The last line is what a script reads; a step that did not build counts as one failure.
echo "${steps[*]}: $(python3 tests/count.py "${results[@]}")"
[[ ${#failed[@]} -eq 0 ]]
