#!/usr/bin/env python3
"""docs/failures.md lists every log event of the sources with its levels and its hint, and every cause
of the tables of causes; and every line of a failure says its code and what to do."""

import argparse
import os
import re
import sys

FOLDERS = ("transport", "kvcache", "router", "tools")
LEVELS = ("debug", "info", "warning", "error")
# Where causes of an event are: each row of such a table is {Enum::x, Code::y, "cause", "hint", …}.
TABLES = {
    "control.refused": "transport/core/refusals.cc",
    "tcp.greeting_refused": "transport/tcp/tcp_faults.cc",
    "shm.refused": "transport/shm/shm_refusals.cc",
    "libfabric.peer_lost": "transport/libfabric/fabric_faults.cc",
    "verbs.peer_lost": "transport/verbs/verbs_faults.cc",
    "ucx.peer_lost": "transport/ucx/ucx_faults.cc",
    "http.refused": "router/http/refusals.cc",
    "bootstrap.refused": "router/bootstrap/refusals.cc",
    "fleet.worker_unhealthy": "router/fleet/fleet.cc",
    "worker.http_refused": "tools/worker/http_server.cc",
}
# Shares the table of the other.
SAME_TABLE = {
    "tcp.dial_failed": "tcp.greeting_refused",
    "verbs.device_failed": "verbs.peer_lost",
}
# Warnings that tell of no failure.
NO_FAILURE = {"bootstrap.etcd_back", "testing.stop_at"}
TEXT = r'"((?:[^"\\]|\\.)*)"'
ROW = re.compile(r"\{\w+::\w+,\s*Code::(\w+),\s*" + TEXT + r",\s*((?:" + TEXT + r"\s*)+)")


def sources(root):
    for folder in FOLDERS:
        for where, _, names in os.walk(os.path.join(root, folder)):
            for name in sorted(names):
                if name.endswith((".cc", ".h")):
                    path = os.path.join(where, name)
                    with open(path, encoding="utf-8") as file:
                        yield os.path.relpath(path, root), file.read()


def call(text, begin):
    """The arguments from `begin`, behind the opening bracket, to the closing one."""
    depth, at = 1, begin
    while depth > 0:
        if text[at] == '"':
            at += 1
            while text[at] != '"':
                at += 2 if text[at] == "\\" else 1
        elif text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
        at += 1
    return text[begin : at - 1]


def literals(text):
    """Neighbouring texts are one; a choice has several."""
    parts = re.finditer(r"(?:" + TEXT + r"\s*)+", text)
    return ["".join(re.findall(TEXT, part.group(0))) for part in parts]


def hint_of(arguments):
    found = re.search(r'\{\s*"hint",', arguments)
    if not found:
        return None
    value = call(arguments, found.end())
    parts = literals(value)
    if "remedy(" in value:
        parts.append("of the code")
    if not parts:
        parts.append("of the cause")
    return " / ".join(parts)


class Events:
    def __init__(self):
        self.levels, self.hints, self.wrong = {}, {}, []

    def read(self, path, text):
        for found in re.finditer(r"(?<![\w.>])(?:kvl::)?log\(", text):
            arguments = call(text, found.end())
            named = re.search(r'^[^"]*LogLevel::[^"]*"([a-z_.0-9]+)"', arguments)
            if not named:
                continue
            event = named.group(1)
            levels = set(re.findall(r"LogLevel::(\w+)", arguments[: named.end()]))
            levels -= {"debug"} if len(levels) > 1 else set()
            hint = hint_of(arguments)
            self.levels.setdefault(event, set()).update(levels)
            self.hints.setdefault(event, [])
            if hint and hint not in self.hints[event]:
                self.hints[event].append(hint)
            if levels & {"warning", "error"} and event not in NO_FAILURE:
                for key in ("code", "hint"):
                    if f'{{"{key}",' not in arguments:
                        self.wrong.append(f"{path}: {event} says no {key}")


def check_itself():
    events = Events()
    events.read("planted.cc", 'kvl::log(LogLevel::warning, "a.b", {{"why", "(\\")"}});')
    events.read(
        "planted.cc",
        """log(bad ? LogLevel::warning : LogLevel::info, "a.c",
               {{"code", to_string(code)}, {"hint", bad ? "do " "it" : remedy(code)}});""",
    )
    assert events.wrong == ["planted.cc: a.b says no code", "planted.cc: a.b says no hint"]
    assert events.levels == {"a.b": {"warning"}, "a.c": {"warning", "info"}}
    assert events.hints == {"a.b": [], "a.c": ["do it / of the code"]}


def rows(page, heading, columns):
    begin = page.find(f"\n## {heading}\n")
    if begin < 0:
        return []
    section = page[begin + 4 :]
    section = section[: section.find("\n## ")] if "\n## " in section else section
    found = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == columns:
            found.append(cells)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    root = parser.parse_args().root
    check_itself()
    events = Events()
    tables = {}
    for path, text in sources(root):
        events.read(path, text)
        for event, table in TABLES.items():
            if table == path:
                tables[event] = [
                    (cause, code, "".join(re.findall(TEXT, hints)))
                    for code, cause, hints, _ in ROW.findall(text)
                ]
    wrong = events.wrong
    with open(os.path.join(root, "docs/failures.md"), encoding="utf-8") as file:
        page = file.read()

    shown = {row[0].strip("`"): row for row in rows(page, "Log events", 4)}
    for event in sorted(events.levels):
        levels = ", ".join(l for l in LEVELS if l in events.levels[event])
        hint = " / ".join(events.hints[event]) or "-"
        row = shown.get(event)
        if row is None or row[1] != levels or row[3] != hint:
            wrong.append(f"docs/failures.md, log events: wanted | `{event}` | {levels} | … | {hint} |")
        elif not row[2]:
            wrong.append(f"docs/failures.md: {event} says nothing")
    for event in shown.keys() - events.levels.keys():
        wrong.append(f"docs/failures.md: nobody logs {event}")

    causes = {(row[0].strip("`"), row[1].strip("`")): row for row in rows(page, "Causes", 4)}
    wanted = set()
    for event in TABLES:
        if not tables.get(event):
            wrong.append(f"{TABLES[event]}: no table of causes was found")
        for cause, code, hint in tables.get(event, []):
            wanted.add((event, cause))
            row = causes.get((event, cause))
            if row is None or row[2] != f"`{code}`" or row[3] != hint:
                wrong.append(
                    f"docs/failures.md, causes: wanted | `{event}` | `{cause}` | `{code}` | {hint} |"
                )
    for event, cause in causes.keys() - wanted:
        wrong.append(f"docs/failures.md: {event} has no cause {cause}")
    for event, hints in events.hints.items():
        if "of the cause" in hints and event not in TABLES and event not in SAME_TABLE:
            wrong.append(f"{event}: no table of its causes is known here")

    for sentence in wrong:
        print(sentence)
    print(f"{len(events.levels)} events and {len(wanted)} causes compared")
    return 1 if wrong or len(events.levels) < 40 or len(wanted) < 30 else 0


if __name__ == "__main__":
    sys.exit(main())
