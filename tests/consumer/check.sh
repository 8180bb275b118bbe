#!/usr/bin/env bash
# Installs the build tree KVL_BUILD into a folder of its own and uses it as a stranger would.
#   check.sh install | cmake | pkg_config | worker
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$KVL_BUILD/consumer
prefix=$work/prefix
transports=(tcp shm)

fail() {
  echo "consumer: $*" >&2
  exit 1
}

# configure_and_build SOURCE: a project that gets kvlane from the prefix and from nowhere else.
configure_and_build() {
  local build
  build=$work/$(basename "$1")
  rm -rf "$build"
  cmake -S "$1" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix" \
    -DCMAKE_CXX_COMPILER="$KVL_CXX" -DCMAKE_CXX_COMPILER_LAUNCHER="$(command -v ccache || true)" \
    -DCMAKE_FIND_PACKAGE_NO_PACKAGE_REGISTRY=ON >"$build.log" 2>&1 ||
    { cat "$build.log"; fail "cmake -S $1"; }
  cmake --build "$build" || fail "cmake --build $1"
}

check_install() {
  rm -rf "$work"
  # Installed at one place, then moved: nothing in it may remember where it was made.
  cmake --install "$KVL_BUILD" --prefix "$work/first" >"$KVL_BUILD/consumer-install.log" 2>&1 ||
    { cat "$KVL_BUILD/consumer-install.log"; fail "cmake --install"; }
  mv "$work/first" "$prefix"

  # Public headers, all of them, and no others.
  diff <(cd "$root" && find ./*/include -name '*.h' | sed 's|.*/include/||' | sort) \
    <(cd "$prefix/include" && find . -type f | sed 's|^\./||' | sort) ||
    fail "the installed headers are not the public headers (< repository, > installed)"
  # Every archive of the build that belongs to the product.
  local archive
  for archive in "$KVL_BUILD"/{transport,kvcache,router}/libkvl_*.a; do
    [[ -f $prefix/$KVL_LIBDIR/$(basename "$archive") ]] || fail "$(basename "$archive") is not installed"
  done
  ! grep -rlF -e "$KVL_BUILD" -e "$root" "$prefix/$KVL_LIBDIR/cmake" "$prefix/$KVL_LIBDIR/pkgconfig" ||
    fail "these files name the folder they were built in"
  "$prefix/bin/kvlane" --version
}

check_cmake() {
  configure_and_build "$here/project"
  "$work/project/move_page" "${transports[@]}"
}

check_pkg_config() {
  export PKG_CONFIG_PATH=$prefix/$KVL_LIBDIR/pkgconfig
  local flags
  read -ra flags <<<"$(pkg-config --cflags --libs kvlane)"
  "$KVL_CXX" -std=c++20 "$here/project/move_page.cc" "${flags[@]}" -o "$work/move_page"
  "$work/move_page" "${transports[@]}"
  pkg-config --static --libs kvlane >/dev/null
}

# The reference engine is a user, too: its folder alone, against the install.
check_worker() {
  rm -rf "$work/worker-source"
  cp -r "$root/tools/worker" "$work/worker-source"
  configure_and_build "$work/worker-source"
}

case "${1:-}" in
  install | cmake | pkg_config | worker) "check_$1" ;;
  *) fail "no check is called '${1:-}'" ;;
esac
