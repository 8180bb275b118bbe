#!/usr/bin/env bash
# Installs what kvlane needs on Debian 12, where it is missing. `--tests` adds what only tests need.
set -euo pipefail

build=(g++ cmake ninja-build ccache pkg-config ca-certificates python3
  libboost1.81-dev libboost-json1.81-dev libboost-system1.81-dev libboost-url1.81-dev libssl-dev
  libcli11-dev libxxhash-dev libtomlplusplus-dev libspdlog-dev libfmt-dev libhwloc-dev libfabric-dev libibverbs-dev
  libucx-dev)
tests=(python3-numpy python3-venv libgtest-dev libgmock-dev librapidcheck-dev libbenchmark-dev liburing-dev clang-14
  clang-tidy-14 clang-format-14 libclang-rt-14-dev iproute2 curl git openssl etcd-server
  qemu-system-x86 busybox-static cpio kmod xz-utils ibverbs-providers)

packages=("${build[@]}")
[[ "${1:-}" == "--tests" ]] && packages+=("${tests[@]}")

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
    missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

sudo=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || {
    echo "setup: these packages are missing and you are not root: ${missing[*]}" >&2
    exit 1
  }
  sudo=(sudo)
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get update -qq
# The tests start servers of their own; a service that a package would start is in their way.
if [[ " ${missing[*]} " == *" etcd-server "* && ! -e /usr/sbin/policy-rc.d ]]; then
  printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee /usr/sbin/policy-rc.d >/dev/null
  "${sudo[@]}" chmod +x /usr/sbin/policy-rc.d
  trap '"${sudo[@]}" rm -f /usr/sbin/policy-rc.d' EXIT
fi
"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
