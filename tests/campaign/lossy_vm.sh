#!/usr/bin/env bash
# The cells of two hosts whose link loses, repeats and reorders packets, where this machine's kernel
# has no netem: in a virtual machine whose kernel has it, over this machine's files.
#
#   lossy_vm.sh PROGRAM [OPTIONS OF campaign.py]
#
# Exit status 77: tests/rdma-vm.sh says why there can be no such machine (skipped).
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$(realpath "${1:?usage: lossy_vm.sh PROGRAM [OPTIONS]}")
shift

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tests/rdma-vm.sh --device none --netdev pair --mem 4096 --timeout "${KVLANE_VM_TIMEOUT_S:-560}" \
  --share "$folder" -- \
  python3 -B tests/campaign/campaign.py --kvlane "$program" --fleet tcp-hosts --keep "$folder" "$@" |
  tee "$folder/said"
# A skip inside is a test that did not happen.
grep -q '^prefill .*+ *+$' "$folder/said" || { echo "loss and delay did not run"; exit 1; }
