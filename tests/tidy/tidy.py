#!/usr/bin/env python3
"""The house rules as a test: layers, environment, dead files, unfinished work, documentation.

tidy.py rules  --root DIR --build DIR [--kvlane PROGRAM]
tidy.py format --root DIR        exit status 77, aloud, where clang-format is missing
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

import layers
import measure
import rules

SKIPPED = 77
TEXT = (".cc", ".h", ".py", ".sh", ".cmake", ".txt", ".md", ".in", ".json", ".tidy", ".yml")


def tracked(root):
    """The project's files: what git knows, or, in an unpacked archive, everything but builds."""
    git = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, text=True)
    if git.returncode == 0 and git.stdout:
        paths = git.stdout.rstrip("\0").split("\0")
    else:
        paths = [
            os.path.relpath(os.path.join(folder, name), root)
            for folder, _, names in os.walk(root)
            for name in names
        ]
        paths = [path for path in paths if not path.startswith(("build/", ".git/"))]
    return [path for path in paths if os.path.isfile(os.path.join(root, path))]


def read(root):
    files = {}
    for path in tracked(root):
        if path.endswith(TEXT) or path.startswith(".ci/"):
            with open(os.path.join(root, path), encoding="utf-8") as file:
                files[path] = file.read()
    return files


def compiled(root, build):
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as file:
        return {
            os.path.relpath(os.path.join(entry["directory"], entry["file"]), root)
            for entry in json.load(file)
        }


def printed_settings(kvlane):
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("KVLANE_", "MC_"))
    }
    shown = subprocess.run(
        [kvlane, "config", "--json"], capture_output=True, text=True, check=True, env=clean
    )
    return {row["name"] for row in json.loads(shown.stdout)}


def judge(root, build, kvlane):
    files = read(root)
    found = []
    for rule, violations in {
        "layers": layers.check(files),
        "environment": rules.environment_in_one_place(files),
        "unfinished": rules.nothing_unfinished(files),
        "sleep": rules.no_sleep_in_tests(files),
        "elsewhere": rules.nothing_from_elsewhere(files),
        "conditional": rules.no_conditional_transport(files),
        "built": rules.every_source_is_built(files, compiled(root, build)),
        "one type": rules.one_type_per_name(files),
        "described": rules.every_folder_is_described(files),
        "settings": rules.settings_are_documented(
            files, printed_settings(kvlane) if kvlane else None
        ),
    }.items():
        found += [f"[{rule}] {violation}" for violation in violations]
    for sentence in measure.report(files):
        print(sentence)
    print(f"{sum(1 for _ in rules.settings_in(files))} settings")
    for violation in found:
        print(violation)
    print(f"tidy: {len(files)} files, {len(found)} violations")
    return 1 if found else 0


def check_format(root):
    program = shutil.which("clang-format-14")
    if program is None:
        print("tidy: SKIPPED: clang-format-14 is not installed, so the format is not checked")
        return SKIPPED
    paths = [path for path in tracked(root) if path.endswith((".cc", ".h"))]
    return subprocess.run(
        [program, "--dry-run", "-Werror", "--ferror-limit=1", *paths], cwd=root
    ).returncode


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("rules", "format"))
    parser.add_argument("--root", required=True)
    parser.add_argument("--build")
    parser.add_argument("--kvlane")
    options = parser.parse_args()
    if options.what == "format":
        return check_format(options.root)
    return judge(options.root, options.build, options.kvlane)


if __name__ == "__main__":
    sys.exit(main())
