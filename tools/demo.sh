#!/usr/bin/env bash
# The main job in one command: installs what is missing, builds release, then sends a built-in
# workload through a router, two prefill and two decode workers, and verifies every byte of KV.
# Arguments are passed to `kvlane replay`: tools/demo.sh --trace FILE plays a real request trace.
set -euo pipefail
cd "$(dirname "$0")/.."

tools/setup.sh
cmake --preset release -DKVL_TESTS=OFF -DKVL_BENCH=OFF >/dev/null
cmake --build --preset release --target kvlane

echo
build/release/bin/kvlane info
echo
build/release/bin/kvlane replay "$@"

cat <<'NEXT'

What to try next
  build/release/bin/kvlane replay --trace FILE        a Mooncake JSONL or Azure CSV request trace
  build/release/bin/kvlane replay --transport tcp     the same without shared memory
  build/release/bin/kvlane bench --page-bytes 64k     how fast pages move, against raw sockets
  build/release/bin/kvlane doctor                     which transport two endpoints would use, and why
  build/release/bin/kvlane --help                     everything else
NEXT
