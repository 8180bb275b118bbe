#!/usr/bin/env python3
"""Proves that the tests bite: every mutation of the product must make its named test fail.

    tests/mutations/run.py --check            every entry still applies to today's sources (seconds)
    tests/mutations/run.py [NAME …]           build one copy with all mutations in it, run the tests
    tests/mutations/run.py --build DIR …      … in DIR instead of build/mutations

The copy is built once. A mutation sleeps until the environment variable KVL_MUTANT names it, which
only the copy reads. Exit status 1: a mutation lives, or a test fails without one.
"""
import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True  # leaves nothing behind in the source tree
from mutations import MUTATIONS, OPEN  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SKIP = {"build", ".git"}
SWITCH = """// Generated: the switch of the mutations in this copy.
#pragma once
#include <cstdlib>
#include <cstring>
inline bool kvl_mutant(const char* name) {
  static const char* const on = std::getenv("KVL_MUTANT");
  return on != nullptr && std::strcmp(on, name) == 0;
}
"""
# A test that needs longer than this, and several times what it needs without a mutation, hangs.
TEST_SECONDS, TEST_TIMES = 180, 6
SOUND_SECONDS = 1800


def mutate(text, entries, file):
    """`text` with all entries of the file in it, and what is wrong with them."""
    wrong, places = [], []
    for m in entries:
        count = text.count(m.old)
        if count != 1:
            wrong.append(f"{m.name}: its text occurs {count} times in {file}")
        elif "MUTANT" not in m.new:
            wrong.append(f"{m.name}: has no switch")
        else:
            places.append((text.index(m.old), m))
    places.sort(key=lambda place: place[0])
    out, at = "", 0
    for begin, m in places:
        if begin < at:
            wrong.append(f"{m.name}: overlaps another mutation of {file}")
            continue
        out += text[at:begin] + m.new.replace("MUTANT", f'kvl_mutant("{m.name}")')
        at = begin + len(m.old)
    return '#include "kvl_mutants.h"\n' + out + text[at:], wrong


def mutated_files():
    """File -> mutated text, and everything that is wrong with the list."""
    files, wrong = {}, []
    names = [m.name for m in MUTATIONS]
    wrong += [f"{name}: open, but no mutation" for name in sorted(OPEN - set(names))]
    wrong += [f"{name}: listed twice" for name in set(names) if names.count(name) > 1]
    for file in sorted({m.file for m in MUTATIONS}):
        if not (ROOT / file).is_file():
            wrong.append(f"{file}: no such file")
            continue
        entries = [m for m in MUTATIONS if m.file == file]
        files[file], more = mutate((ROOT / file).read_text(), entries, file)
        wrong += more
    return files, wrong


def write(path, text):
    """Only what changed, so that the second build is short."""
    if path.is_file() and path.read_text(errors="surrogateescape") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, errors="surrogateescape")


def copy_sources(copy, files):
    kept = set()
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if not (Path(folder) == ROOT and f in SKIP or f == ".git")]
        for name in names:
            source = Path(folder) / name
            relative = source.relative_to(ROOT)
            kept.add(relative)
            target = copy / relative
            if str(relative) in files:
                write(target, files[str(relative)])
            elif not target.is_file() or target.read_bytes() != source.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
                os.utime(target)
    write(copy / "kvl_mutants.h", SWITCH)
    kept.add(Path("kvl_mutants.h"))
    for path in [p for p in copy.rglob("*") if p.is_file()]:
        relative = path.relative_to(copy)
        if relative.parts[0] != "build" and relative not in kept:
            path.unlink()


def build(copy, chosen, jobs):
    """As the release preset: same flags and relative paths, so that a compiler cache knows the rest."""
    programs = sorted({test[0] for m in chosen for test in m.tests})
    out = copy / "build" / "release"
    for command in (["cmake", "--preset", "release", "-DKVL_TESTS=ON", "-DKVL_BENCH=ON"],
                    ["cmake", "--build", "--preset", "release", f"-j{jobs}", "--target", *programs]):
        done = subprocess.run(command, cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            sys.exit(done.stdout.decode(errors="replace")[-8000:])
    found = {}
    for path in out.rglob("*_test"):
        if path.is_file() and os.access(path, os.X_OK):
            found[path.name] = path
    return {name: found[name] for name in programs}


def passes(programs, test, mutant, folder, seconds):
    environment = dict(os.environ, KVL_SIM_SHRINK="0")
    environment.pop("KVL_MUTANT", None)
    if mutant:
        environment["KVL_MUTANT"] = mutant
    command = [programs[test[0]], f"--gtest_filter={test[1]}", "--gtest_brief=1"]
    if mutant:
        command.append("--gtest_fail_fast")
    try:
        done = subprocess.run(list(map(str, command)), env=environment, cwd=folder,
                              timeout=seconds, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired:
        return False, "hangs"
    if done.returncode == 0:
        return True, ""
    text = done.stdout.decode(errors="replace")
    if done.returncode < 0:
        return False, f"dies of signal {-done.returncode}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for marker in ("(at ", "Failure", "FAILED"):
        for index, line in enumerate(lines):
            if marker in line:
                return False, (line if marker != "Failure" else " ".join(lines[index + 1:index + 2]))
    return False, "fails"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="mutations; none: all")
    parser.add_argument("--check", action="store_true", help="only: does every entry apply?")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "mutations")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    files, wrong = mutated_files()
    unknown = set(options.names) - {m.name for m in MUTATIONS}
    wrong += [f"{name}: no such mutation" for name in sorted(unknown)]
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong or options.check:
        print(f"{len(MUTATIONS)} mutations in {len(files)} files, {len(wrong)} do not apply")
        return 1 if wrong else 0

    chosen = [m for m in MUTATIONS if not options.names or m.name in options.names]
    copy = options.build.resolve()
    copy_sources(copy, files)
    began = time.monotonic()
    programs = build(copy, chosen, options.jobs)
    print(f"built in {time.monotonic() - began:.0f} s")
    sound = True
    limits = {}
    for test in sorted({test for m in chosen for test in m.tests}):
        began = time.monotonic()
        good, why = passes(programs, test, None, copy, SOUND_SECONDS)
        limits[test] = max(TEST_SECONDS, TEST_TIMES * (time.monotonic() - began))
        if not good:
            print(f"without a mutation {test[0]} {test[1]} {why}")
            sound = False
    if not sound:
        return 1
    width = max(len(m.name) for m in chosen)
    living = []
    for m in chosen:
        row = "LIVES"
        for test in m.tests:
            good, why = passes(programs, test, m.name, copy, limits[test])
            if not good:
                row = f"killed by {test[0]} {test[1]}: {why[:110]}"
                if m.name in OPEN:
                    row += "  (take it off OPEN)"
                break
        else:
            living.append(m.name)
            if m.name in OPEN:
                row += " (open)"
        print(f"{m.name:{width}}  {row}", flush=True)
    print(f"{len(chosen) - len(living)} of {len(chosen)} mutations killed")
    return 1 if set(living) - OPEN else 0


if __name__ == "__main__":
    sys.exit(main())
