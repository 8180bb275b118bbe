#!/usr/bin/env bash
# Installs the build tree KVL_BUILD into a folder of its own and uses it as a stranger would.
#   check.sh install | cmake | pkg_config | readme | worker | c
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

# compile SOURCE PROGRAM: one line, flags from pkg-config.
compile() {
  local flags
  read -ra flags <<<"$(PKG_CONFIG_PATH=$prefix/$KVL_LIBDIR/pkgconfig pkg-config --cflags --libs kvlane)"
  "$KVL_CXX" -std=c++20 -Wall -Werror "$1" "${flags[@]}" -o "$2"
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
  compile "$here/project/move_page.cc" "$work/move_page"
  "$work/move_page" "${transports[@]}"
}

# The README's example is the first thing that a reader tries.
check_readme() {
  sed -n '/^```cpp$/,/^```$/p' "$root/README.md" | sed '/^```/d' >"$work/readme.cc"
  compile "$work/readme.cc" "$work/readme"
  "$work/readme"
}

# The reference engine is a user, too: its folder alone, against the install.
check_worker() {
  rm -rf "$work/alone"
  mkdir "$work/alone"
  cp -r "$root/tools/worker" "$work/alone/worker"
  configure_and_build "$work/alone/worker"
  "$work/worker/kvlane-worker" --help
}

# A C program, and the README's Python example, need the shared library and nothing else.
check_c() {
  cc -std=c11 -Wall -Wextra -Werror -I"$prefix/include" "$root/tests/kvcache/capi/capi_test.c" \
    -L"$prefix/$KVL_LIBDIR" -lkvlane -o "$work/capi"
  LD_LIBRARY_PATH=$prefix/$KVL_LIBDIR "$work/capi"
  sed -n '/^```python$/,/^```$/p' "$root/README.md" | sed '/^```/d' >"$work/readme.py"
  KVLANE_LIBRARY=$prefix/$KVL_LIBDIR/libkvlane.so.1 PYTHONPATH=$root/kvcache/python \
    python3 -B "$work/readme.py"
}

case "${1:-}" in
  install | cmake | pkg_config | readme | worker | c) "check_$1" ;;
  *) fail "no check is called '${1:-}'" ;;
esac
