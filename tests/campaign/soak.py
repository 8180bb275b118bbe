"""Faults at any time to any program, one after the other, under load; then nothing may be left."""

import random
import signal

from fleet import CLIENTS, role_of, shared_files
from load import Load
from processes import last_for, until

PAUSES_S = (0.05, 0.5, 2.5)  # the longest is more than the peer time-out


class Soak:
    """Raises nothing: `problems` has sentences, none when it went well."""

    def __init__(self, fleet, seed):
        self.fleet = fleet
        self.random = random.Random(seed)
        self.problems = []
        self.faults = {}

    def run(self, over):
        files = shared_files()
        fleet = self.fleet
        load = Load(fleet.router, fleet.prompts, CLIENTS, fleet.name(), leave_each=7).start()
        while not over() and not self.problems:
            self._strike(load)
        if not load.stop():
            self.problems.append("a request did not end")
        counts = load.counts
        if counts.bad:
            self.problems.append(f"{len(counts.bad)} requests: {counts.bad[0]}")
        if not self.problems and (excess := fleet.excess(fleet.survivors(None), 30)):
            self.problems.append(f"left behind: {excess}")
        if left := shared_files() - files:
            self.problems.append(f"left in /dev/shm: {left}")
        return counts

    def _strike(self, load):
        place = self.random.choice(self.fleet.places)
        fault = self.random.choice(("kill", "term", "stop"))
        self.faults[fault] = self.faults.get(fault, 0) + 1
        last_for(self.random.random() * 0.3)
        program = self.fleet.programs[place]
        if fault == "stop":
            program.send(signal.SIGSTOP)
            self.fleet.frozen.add(place)
            last_for(self.random.choice(PAUSES_S))
            program.send(signal.SIGCONT)
        else:
            status = program.end(signal.SIGKILL if fault == "kill" else signal.SIGTERM)
            if fault == "term" and status != 0 and place != "etcd":
                self.problems.append(f"{place} ended with {status} on SIGTERM")
            last_for(self.random.random() * 0.3)
            if not self.fleet.launch(place):
                self.problems.append(f"a new {place} does not start")
                return
        if not load.wait_good(3, 60):
            self.problems.append(f"no good answers after {fault} of {place}")
        elif role_of(place) in ("prefill", "decode"):
            before = self.fleet.handoffs(place)
            if not until(lambda: self.fleet.handoffs(place) > before, 60, 0.05):
                self.problems.append(f"{place} gets no requests after {fault}")
