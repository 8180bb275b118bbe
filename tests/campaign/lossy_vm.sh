#!/usr/bin/env bash
# The cells of two hosts whose link loses, repeats and reorders packets, where this machine's kernel
# has no netem: in a virtual machine whose kernel has it, over this machine's files.
#
#   lossy_vm.sh PROGRAM [OPTIONS OF campaign.py]
#
# KVLANE_VM_RUNNER is a program that runs a command in such a machine, with --netdev, --mem, --timeout,
# --share and "-- COMMAND". Exit status 77: there is none (skipped).
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$(realpath "${1:?usage: lossy_vm.sh PROGRAM [OPTIONS]}")
shift

runner=${KVLANE_VM_RUNNER:-../shared/rdma-vm/run-in-rdma-vm.sh}
if [[ ! -x $runner && ! -f $runner ]]; then
  echo "SKIPPED: no virtual machine (KVLANE_VM_RUNNER); netem was not tested"
  exit 77
fi
if ! command -v qemu-system-x86_64 >/dev/null; then
  echo "SKIPPED: no qemu-system-x86_64 (package qemu-system-x86); netem was not tested"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
bash "$runner" --netdev pair --mem 4096 --timeout "${KVLANE_VM_TIMEOUT_S:-560}" --share "$folder" -- \
  python3 -B tests/campaign/campaign.py --kvlane "$program" --fleet tcp-hosts --keep "$folder" "$@" |
  tee "$folder/said"
# A skip inside is a test that did not happen.
grep -q '^prefill .*+ *+$' "$folder/said" || { echo "loss and delay did not run"; exit 1; }
