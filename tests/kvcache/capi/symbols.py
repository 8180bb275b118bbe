#!/usr/bin/env python3
"""What libkvlane.so shows and needs: nothing but kvl_* leaves it, all that the header declares is
there, and glibc 2.34 is enough.

    symbols.py LIBRARY HEADER
"""
import re
import subprocess
import sys

GLIBC_MOST = (2, 34)


def main():
    library, header = sys.argv[1:]
    table = subprocess.run(
        ["objdump", "-T", library], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    defined, wrong = set(), []
    for line in table:
        if not re.match(r"[0-9a-f]{8,} ", line):
            continue
        name = line.split()[-1]
        if "*UND*" in line:
            version = re.search(r"GLIBC_(\d+)\.(\d+)", line)
            if version and tuple(map(int, version.groups())) > GLIBC_MOST:
                wrong.append(f"{name} needs glibc {version.group(0)[6:]}")
        elif "*ABS*" not in line:
            defined.add(name)
    with open(header, encoding="utf-8") as file:
        declared = set(re.findall(r"KVL_API [^;]*?\b(kvl_\w+)\(", file.read()))
    wrong += [f"{name} is exported and not declared" for name in sorted(defined - declared)]
    wrong += [f"{name} is declared and not exported" for name in sorted(declared - defined)]
    if len(declared) < 20:
        wrong.append("the header was not understood")
    for line in wrong:
        print(line)
    print(f"{len(defined)} functions, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
