#!/usr/bin/env python3
"""Hostile clients against the living programs: one row per program and attack.

Each row: the program lives, answers an honest client while the attack is in place, ends the hostile
connections by its own limits, and gives back descriptors and memory. Exit status 1 when one does not.
"""

import argparse
import sys
import time

import attacks
from programs import PATIENCE_S, StubWorker, start, until

MEMORY_KIB_MAX = 96 << 10  # more than before an attack; bodies of 32 MiB are allowed in all


def run(program, port, attack):
    """What one row says; raises AssertionError with what is wrong."""
    descriptors, memory = program.descriptors(), program.memory_kib()
    steps = attack(port)
    next(steps)
    begin = time.monotonic()
    served = False
    until_served = begin + PATIENCE_S
    while not served and time.monotonic() < until_served:
        try:
            served = program.ask(program.port)
        except OSError:
            served = False
    assert served, "nobody else was answered meanwhile"
    answered_ms = (time.monotonic() - begin) * 1000
    grown = program.memory_kib() - memory
    said = next(steps)
    assert program.alive(), "the program has died"
    grown = max(grown, program.memory_kib() - memory)
    assert grown < MEMORY_KIB_MAX, f"{grown} KiB more memory"
    # The hostile ends are still open. One connection to a worker and a few timers may be new.
    until(lambda: program.descriptors() <= descriptors + 4, "descriptors are not given back")
    steps.close()
    assert program.ask(program.port), "nobody is answered afterwards"
    return f"{said}; others answered in {answered_ms:.0f} ms; memory +{max(grown, 0)} KiB"


def rows_of(name, program):
    if name != "engine":
        return [(name, program.port, what, attack) for what, attack in attacks.HTTP.items()]
    rows = [("engine control", program.port, *row) for row in attacks.CONTROL.items()]
    lanes = sorted(program.listening_ports() - {program.port})
    assert lanes, "the engine has no data port"
    return rows + [("engine lanes", lanes[0], *row) for row in attacks.LANES.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kvlane", required=True, help="the program")
    parser.add_argument("--only", help="rows whose name contains this")
    parser.add_argument("programs", nargs="*", default=["router", "bootstrap", "worker", "engine"])
    given = parser.parse_args()
    stub, failed, count = StubWorker(), 0, 0
    for name in given.programs:
        program = start(given.kvlane, name, stub)
        try:
            until(lambda: program.ask(program.port), f"{name} does not serve")
            for who, port, what, attack in rows_of(name, program):
                if given.only and given.only not in f"{who} {what}":
                    continue
                count += 1
                try:
                    result = "ok      " + run(program, port, attack)
                except (AssertionError, OSError) as wrong:
                    result = f"FAILED  {wrong}"
                    failed += 1
                print(f"{who:15} {what:21} {result}", flush=True)
                if not program.alive():
                    print(f"{who} has died: {program.process.returncode}", flush=True)
                    failed += 1
                    break
        finally:
            program.stop()
    stub.stop()
    print(f"{count} attacks, {failed} failed")
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main())
