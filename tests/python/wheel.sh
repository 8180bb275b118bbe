#!/usr/bin/env bash
# The wheel as a user makes and installs it: pip wheel, pip install into a fresh environment, the
# program, and a transfer between two processes.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/build"
"$place/build/bin/pip" -q wheel --no-deps -w "$place" "$root"
wheel=$(echo "$place"/kvlane-*.whl)
case "$wheel" in
  *-py3-none-*) ;;
  *) echo "$wheel is for one version of Python only" >&2; exit 1 ;;
esac
python3 -m venv "$place/user"
"$place/user/bin/pip" -q install "$wheel"
cd "$place"
"$place/user/bin/kvlane" info >/dev/null
"$place/user/bin/python" - <<'END'
import kvlane
with kvlane.Engine({"listen": "127.0.0.1:0"}) as engine:
    print(kvlane.__version__, engine.address)
END
"$place/user/bin/python" -m unittest discover -s "$root/tests/python"
