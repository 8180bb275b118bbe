#!/usr/bin/env python3
"""docs/limits.md says what `kvlane config` says: every row's default, and a row for every limit."""

import argparse
import json
import re
import subprocess
import sys

LIMIT = re.compile(r"(_max|^max|\.max|timeout|lease|ttl|deadline|abort_ms|early|grace|retries|inflight)")
# Matches by its name, but bounds what we do and not what others may.
NO_LIMIT = {"tcp.user_timeout_ms"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kvlane", required=True)
    parser.add_argument("--page", required=True)
    given = parser.parse_args()
    printed = subprocess.run(
        [given.kvlane, "config", "--json"], capture_output=True, text=True, check=True, env={}
    ).stdout
    rows = {row["name"]: row["default"] for row in json.loads(printed)}
    with open(given.page) as file:
        page = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]+?) \|", file.read(), re.M))
    wrong = []
    for name, text in page.items():
        if name not in rows:
            wrong.append(f"{name} is no setting")
        elif rows[name] != text:
            wrong.append(f"{name} is {rows[name]} by default, the page says {text}")
    for name in rows:
        if LIMIT.search(name) and name not in page and name not in NO_LIMIT:
            wrong.append(f"{name} ({rows[name]}) is a limit and not on the page")
    for sentence in wrong:
        print(f"docs/limits.md: {sentence}")
    print(f"{len(page)} limits compared")
    return 1 if wrong or not page else 0


if __name__ == "__main__":
    sys.exit(main())
