#!/usr/bin/env python3
"""Adds up what ctest wrote: `count.py FILE.xml …` prints "N passed, N failed, N skipped".
"!NAME" instead of a file stands for something that failed before there was one.

Counts cases where a program is a gtest program, else the program. The files are those of
`ctest --output-junit`; --test-output-size-passed must be large enough for gtest's last lines.
"""

import re
import sys
from collections import Counter
from xml.etree import ElementTree

TOTALS = {
    "passed": re.compile(r"^\[  PASSED  \] (\d+) test", re.MULTILINE),
    "failed": re.compile(r"^\[  FAILED  \] (\d+) tests?, listed below", re.MULTILINE),
    "skipped": re.compile(r"^\[  SKIPPED \] (\d+) tests?, listed below", re.MULTILINE),
}


def cases_of(test):
    """What one program adds. A program that dies in the middle has failed at least once."""
    output = test.findtext("system-out") or ""
    found = Counter(
        {name: sum(map(int, pattern.findall(output))) for name, pattern in TOTALS.items()}
    )
    status = test.get("status")
    if status == "run":
        return found if sum(found.values()) else Counter(passed=1)
    if (
        status == "notrun"
        and test.find("skipped") is not None
        and "SKIP" in test.find("skipped").get("message", "")
    ):
        return Counter(skipped=1)
    if status == "disabled":
        return Counter()
    found["failed"] = max(1, found["failed"])
    return found


def main():
    total = Counter()
    for path in sys.argv[1:]:
        if path.startswith("!"):
            total["failed"] += 1
            continue
        for test in ElementTree.parse(path).getroot().iter("testcase"):
            total += cases_of(test)
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")


if __name__ == "__main__":
    main()
