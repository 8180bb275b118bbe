#!/usr/bin/env python3
"""The process campaign: real programs, a fault at a stage of a request's life, under load.

  campaign.py --kvlane build/release/bin/kvlane          the short run: every stage, what differs
  campaign.py --kvlane … --all                           every program, stage and fault, everywhere
  campaign.py --kvlane … --repeat 20 --only 'decode .* kill'
  campaign.py --kvlane … --soak 900                      random faults for so many seconds
  campaign.py --kvlane … --control                       a flipped bit in each handoff: all noticed

Prints the table program x stage x fault. Exit status 1: a cell is red.
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

from cells import FAULTS, NETWORK_FAULTS, STAGES, Cell, all_cells, network_cells, short_cells
from etcd import installed as etcd_installed
from etcd_strike import EtcdStrike
from fleet import CLIENTS, Fleet
from load import Load
from network import HERE, THERE, NetworkStrike, TwoHosts
from processes import until
from soak import Soak
from strike import Figures, Red, Skipped, Strike

VERBS = ("verbs", "kv")  # runs only where --fleet names it: it needs an RDMA device
FLEETS = (("tcp", "kv"), ("shm", "kv"), ("tcp", "model"), ("shm", "model"), VERBS)
WITH_ETCD = 0  # the fleet whose rendezvous keeps its records there
DEAL = (0, 1, 0, 1, 2, 0, 1, 0, 1, 3)
NETWORK = ("tcp", "hosts")  # workers that verify, on two hosts


class Result:
    def __init__(self, cell, transport, kind):
        self.cell, self.transport, self.kind = cell, transport, kind
        self.state, self.why = "green", ""
        self.seconds = 0.0
        self.figures = None
        self.counts = {}

    def row(self):
        figures = vars(self.figures) if self.figures else {}
        return {
            **self.cell._asdict(),
            "transport": self.transport,
            "kind": self.kind,
            "state": self.state,
            "why": self.why,
            "seconds": round(self.seconds, 2),
            "requests": self.counts,
            **{f"{name}_ms": value and round(value, 1) for name, value in figures.items()},
        }


    @staticmethod
    def of(row):
        cell = Cell(row["program"], row["stage"], row["fault"])
        result = Result(cell, row["transport"], row["kind"])
        result.state, result.why, result.seconds = row["state"], row["why"], row["seconds"]
        result.counts = row["requests"]
        if "noticed_ms" in row:
            result.figures = Figures()
            for name in vars(result.figures):
                setattr(result.figures, name, row[f"{name}_ms"])
        return result


def run_cell(fleet, cell, strike):
    result = Result(cell, fleet.transport, fleet.kind)
    begin = time.monotonic()
    try:
        result.figures = strike.run()
    except Skipped as missing:
        result.state, result.why = "skipped", str(missing)
    except Red as red:
        result.state, result.why = "red", str(red)
    except Exception as problem:  # a defect of the campaign is red as well
        result.state = "red"
        result.why = f"{problem!r} at {traceback.extract_tb(problem.__traceback__)[-1]}"
    result.seconds = time.monotonic() - begin
    if strike.load:
        counts = strike.load.counts
        result.counts = {"good": counts.good, "refused": counts.refused, "typed": counts.typed}
    return result


def wanted(options, fleet):
    return options.fleet == "-".join(fleet) if options.fleet else fleet != VERBS


def make_fleet(options, index, folder):
    etcd = index == WITH_ETCD and etcd_installed()
    return Fleet(options.kvlane, folder, *FLEETS[index], options.seed + index, etcd)


def strike_of(fleet, cell):
    if cell.program != "etcd":
        return Strike(fleet, cell)
    return EtcdStrike(fleet, cell)


def run_fleet(options, index, cells, folder, tell):
    results = []
    fleet = make_fleet(options, index, folder)
    try:
        for cell in cells:
            if not fleet.first and not fleet.start():
                raise RuntimeError(f"the fleet did not start: see {folder}")
            results.append(run_cell(fleet, cell, strike_of(fleet, cell)))
            tell(results[-1])
            if results[-1].state == "red":
                # What it left must not be held against the next, nor its traces be mixed with others.
                fleet.close()
                fresh = f"{folder}/after-{len(results)}"
                os.makedirs(fresh, exist_ok=True)
                fleet = make_fleet(options, index, fresh)
    finally:
        fleet.close()
    return results


def run_network(options, cells, folder, tell):
    """Namespaces are entered by a whole process: this program once more."""
    hosts = TwoHosts(str(os.getpid()))
    try:
        if hosts.missing:
            results = [Result(cell, *NETWORK) for cell in cells]
            for result in results:
                result.state, result.why = "skipped", hosts.missing
        else:
            rows = f"{folder}/rows.json"
            inside = [sys.executable, "-B", __file__, "--kvlane", options.kvlane, "--keep", folder]
            inside += ["--seed", str(options.seed), "--json", rows, "--repeat", str(options.repeat)]
            inside += ["--inside", hosts.device, hosts.there]
            if options.only:
                inside += ["--only", options.only]
            entered = ["ip", "netns", "exec", hosts.here, *inside]
            subprocess.run(entered, stdout=subprocess.DEVNULL, check=False)
            with open(rows, encoding="utf-8") as lines:
                results = [Result.of(json.loads(line)) for line in lines]
    finally:
        hosts.close()
    for result in results:
        tell(result)
    return results


def run_inside(options):
    """The network cells, within the first namespace."""
    NetworkStrike.device, there = options.inside
    fleet = Fleet(options.kvlane, options.keep, NETWORK[0], "kv", options.seed)
    fleet.hosts = {name: HERE for name in ("router", "bootstrap", "decode")} | {"prefill": THERE}
    fleet.spaces = {"prefill": ["ip", "netns", "exec", there]}
    results = []
    try:
        for cell in chosen_network(options) * options.repeat:
            if not fleet.first and not fleet.start():
                raise RuntimeError(f"the fleet did not start: see {options.keep}")
            results.append(run_cell(fleet, cell, NetworkStrike(fleet, cell)))
            results[-1].kind = NETWORK[1]
    finally:
        fleet.close()
    write_rows(options, results)
    return 0


def run_soak(options, index, folder):
    """(what came of it in words, problems)"""
    transport, kind = FLEETS[index]
    fleet = make_fleet(options, index, folder)
    try:
        if not fleet.start():
            return "", [f"the fleet did not start: see {folder}"]
        end = time.monotonic() + options.soak
        soak = Soak(fleet, options.seed + index)
        counts = soak.run(lambda: time.monotonic() >= end)
        text = (
            f"{transport}-{kind}: faults {soak.faults}; requests: {counts.good} good, "
            f"{counts.left} left, {counts.refused} without a router, errors {counts.typed}"
        )
        return text, soak.problems
    finally:
        fleet.close()


def run_control(options, folder):
    """Decode workers that flip a bit of what they receive: no request of theirs may count as good."""
    for index, (transport, kind) in enumerate(FLEETS):
        if not wanted(options, (transport, kind)):
            continue
        fleet = Fleet(options.kvlane, folder, transport, kind, options.seed + index)
        fleet.damage = True
        try:
            if not fleet.open():
                print(f"the fleet did not start: see {folder}")
                return 1
            load = Load(fleet.router, fleet.prompts, CLIENTS, fleet.name()).start()
            until(lambda: len(load.counts.bad) >= CLIENTS)
            load.stop()
            bad, good = load.counts.bad, load.counts.good
            print(f"{transport}-{kind}: {len(bad)} wrong, {good} good; {bad[:1]}")
            if good or not bad:
                return 1
        finally:
            fleet.close()
    return 0


def soak_all(options, folder):
    with concurrent.futures.ThreadPoolExecutor(len(FLEETS)) as pool:
        running = []
        for index, names in enumerate(FLEETS):
            if wanted(options, names):
                place = f"{folder}/{'-'.join(names)}"
                os.makedirs(place, exist_ok=True)
                running.append(pool.submit(run_soak, options, index, place))
        ended = [one.result() for one in running]
    for text, problems in ended:
        print(text)
        for problem in problems:
            print(f"red: {problem}")
    return 1 if any(problems for _, problems in ended) else 0


def write_rows(options, results):
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(result.row()) + "\n" for result in results)


def chosen(options):
    """The cells of each fleet."""
    cells = list(all_cells() if options.all else short_cells())
    if options.only:
        cells = [cell for cell in cells if re.fullmatch(options.only, str(cell))]
    of_etcd = [cell for cell in cells if cell.program == "etcd"] * options.repeat
    cells = [cell for cell in cells if cell.program != "etcd"]
    if options.all or options.only:
        plans = [cells * options.repeat for _ in FLEETS]
    else:
        # The short run has each cell once, dealt out; fleets that compute are slow, and get fewer.
        plans = [[] for _ in FLEETS]
        for i, cell in enumerate(cells):
            plans[DEAL[i % len(DEAL)]].append(cell)
        plans = [plan * options.repeat for plan in plans]
    plans[WITH_ETCD] = of_etcd + plans[WITH_ETCD]
    for index, fleet in enumerate(FLEETS):
        if not wanted(options, fleet):
            plans[index] = []
    return plans


def chosen_network(options):
    return [cell for cell in network_cells() if re.fullmatch(options.only or ".*", str(cell))]


def table(results):
    """Rows: program and stage; columns: faults; a cell: + green, X red, s skipped, . not run."""
    marks = {}
    for result in results:
        worst = {"green": "+", "skipped": "s", "red": "X"}[result.state]
        key = (result.cell.program, result.cell.stage, result.cell.fault)
        marks.setdefault(key, []).append(worst)
    faults = [*FAULTS, *NETWORK_FAULTS]
    lines = [f"{'program':10} {'stage':16} " + " ".join(f"{fault:>11}" for fault in faults)]
    for program, stages in STAGES.items():
        for stage in stages:
            if not any(key[:2] == (program, stage) for key in marks):
                continue
            row = []
            for fault in faults:
                seen = marks.get((program, stage, fault), [])
                mark = "X" if "X" in seen else "s" if "s" in seen else "+" if seen else "."
                row.append(mark + (f" {len(seen)}" if len(seen) > 1 else ""))
            lines.append(f"{program:10} {stage:16} " + " ".join(f"{mark:>11}" for mark in row))
    return "\n".join(lines)


def figures_text(results):
    lines = []
    meanings = {
        "noticed": "dead peer noticed",
        "moved": "request failed or moved",
        "restarted": "restart (link up) to first transfer, of a router to its first answer",
    }
    for name, meaning in meanings.items():
        for fault in ("kill", "freeze", "link"):
            values = sorted(
                getattr(r.figures, name)
                for r in results
                if r.figures and r.cell.fault == fault and getattr(r.figures, name) is not None
            )
            if values:
                middle = values[len(values) // 2]
                lines.append(
                    f"{meaning}, {fault}: median {middle:.0f} ms, most {values[-1]:.0f} ms "
                    f"({len(values)} cells)"
                )
    return "\n".join(lines)


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kvlane", required=True, help="the program")
    parser.add_argument("--all", action="store_true", help="the whole matrix, on every fleet")
    parser.add_argument("--only", help="cells whose 'program stage fault' matches this expression")
    names = ["-".join(one) for one in (*FLEETS, NETWORK)]
    parser.add_argument("--fleet", choices=names, help="this one alone")
    parser.add_argument("--repeat", type=int, default=1, help="each cell so many times")
    parser.add_argument("--soak", type=float, help="seconds of random faults instead of the matrix")
    parser.add_argument("--control", action="store_true", help="damaged pages must be noticed")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20))
    parser.add_argument("--json", help="a file for one JSON object per cell")
    parser.add_argument("--keep", help="a folder to keep logs and traces in")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse(arguments)
    if options.inside:
        return run_inside(options)
    folder = options.keep or tempfile.mkdtemp(prefix="kvlane-campaign-")
    status = run(options, folder)
    if status == 0 and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return status


def run(options, folder):
    if options.control:
        return run_control(options, folder)
    if options.soak:
        print(f"seed {options.seed}, {options.soak:.0f} s; logs and traces in {folder}", flush=True)
        return soak_all(options, folder)
    plans = chosen(options)
    network = options.fleet in (None, "-".join(NETWORK)) and chosen_network(options)
    total = sum(map(len, plans)) + len(network or ()) * options.repeat
    print(f"seed {options.seed}, {total} cells; logs and traces in {folder}", flush=True)
    begin = time.monotonic()
    count = itertools.count(1)  # next() is one step for the threads of all fleets

    def tell(result):
        told = next(count)
        if told * 10 // total > (told - 1) * 10 // total:
            print(f"{told} of {total} cells, {time.monotonic() - begin:.0f} s", flush=True)
        if result.state != "green" or total <= 12:
            where = f"{result.transport}-{result.kind} {result.cell}"
            print(f"{result.state:8} {where}: {result.why or result.counts}", flush=True)

    results = []
    with concurrent.futures.ThreadPoolExecutor(len(FLEETS) + 1) as pool:
        running = []
        if network:
            place = f"{folder}/{'-'.join(NETWORK)}"
            os.makedirs(place, exist_ok=True)
            running.append(pool.submit(run_network, options, network, place, tell))
        for index, plan in enumerate(plans):
            place = f"{folder}/{'-'.join(FLEETS[index])}"
            os.makedirs(place, exist_ok=True)
            running.append(pool.submit(run_fleet, options, index, plan, place, tell))
        for fleet in running:
            results += fleet.result()
    print(table(results))
    print("+ green, X red, s skipped, . not in this run; a number: how often")
    print(figures_text(results))
    states = [result.state for result in results]
    write_rows(options, results)
    print(
        f"{states.count('green')} green, {states.count('red')} red, {states.count('skipped')} "
        f"skipped in {time.monotonic() - begin:.0f} s"
    )
    return 1 if "red" in states or not results else 0


if __name__ == "__main__":
    sys.exit(main())
