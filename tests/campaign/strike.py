"""One cell: a program is stopped at its stage under load, struck, and everything is looked at."""

import os
import resource
import signal
import subprocess
import time

from fleet import CLIENTS, role_of, shared_files, trace_lines
from load import Load
from processes import last_for, until

PAUSE_S = 0.4  # the default peer_timeout_ms is 1500
FREEZE_S = 2.4
SHORTAGE_S = 1.0
ENOUGH = 6  # good answers that show that the rest goes on


class Red(Exception):
    """The cell is red; the text says why."""


class Skipped(Exception):
    """This machine cannot do it; the text says what is missing."""


class Figures:
    """Milliseconds; None where the cell does not tell."""

    def __init__(self):
        self.noticed = self.moved = self.restarted = None


class Strike:
    def __init__(self, fleet, cell):
        self.fleet, self.cell = fleet, cell
        self.place = cell.program
        self.figures = Figures()
        self.struck_ns = 0
        self.load = None
        self.disk = None
        self.files = shared_files()

    def run(self):
        """Raises Red or Skipped; the figures otherwise."""
        if self.cell.fault == "disk":
            self.disk = self.make_disk()
        try:
            self._arm()
            self._strike()
            self._recover()
        finally:
            ended = self.load.stop() if self.load else True
            if self.disk:
                self.disk.close(self.fleet, self.place)
        self._judge(ended)
        if excess := self.fleet.excess(self.survivors()):
            raise Red(f"left behind: {excess}")
        if left := shared_files() - self.files:
            raise Red(f"left in /dev/shm: {left}")
        self._measure()
        return self.figures

    def make_disk(self):
        return TinyDisk(self.fleet.folder, 64)

    # ---- the way to the stage

    def _arm(self):
        fleet, place = self.fleet, self.place
        status = fleet.programs[place].end(signal.SIGTERM)
        if status != 0:
            raise Red(f"{place} ended with {status} when asked to, before anything was struck")
        disk = {"stderr": self.disk.log, "trace": self.disk.trace} if self.disk else {}
        fleet.launch(place, f"{self.cell.stage}:stop", wait=place != "bootstrap", **disk)
        if place == "bootstrap":
            self._approach_bootstrap()
        elif not fleet.programs[place].port:
            raise Red(f"{place} did not start: see {fleet.programs[place].errors}")
        self._start_load()
        if not until(self.victim.stopped):
            raise Red("the stage was not reached")
        self.struck_ns = time.time_ns()

    def _start_load(self):
        fleet = self.fleet
        self.load = Load(fleet.router, fleet.prompts, CLIENTS, fleet.name()).start()

    def _approach_bootstrap(self):
        """It is asked by ranks that start, and by decode workers that do not know a prefill worker
        yet: so start one of each."""
        fleet = self.fleet
        if not self.victim.ready():
            raise Red("bootstrap did not start")
        for place in ("prefill", "decode"):
            fleet.programs[place].end(signal.SIGTERM)
            fleet.launch(place, wait=False)
            # One whose registration is the stage is ready only after it.
            if not until(lambda: self.victim.stopped() or fleet.programs[place].settled()):
                raise Red(f"{place} did not start")

    def survivors(self):
        return self.fleet.survivors(self.place)

    @property
    def victim(self):
        return self.fleet.programs[self.place]

    # ---- the fault

    def _strike(self):
        getattr(self, f"_{self.cell.fault}")()

    def _kill(self):
        self.victim.end()
        self._go_on_without()
        self._relaunch()

    def _term(self):
        status = self.victim.end(signal.SIGTERM)
        if status != 0:
            raise Red(f"ended with {status} on SIGTERM")
        self._go_on_without()
        self._relaunch()

    def _pause(self):
        last_for(PAUSE_S)
        self.victim.send(signal.SIGCONT)

    def _freeze(self):
        """Twice, so that what is kept for each loss of a living process shows."""
        self.fleet.frozen.add(self.place)
        last_for(FREEZE_S)
        self.victim.send(signal.SIGCONT)
        if not self.load.wait_good(ENOUGH, 40):
            raise Red("no good answers after the first time")
        self.victim.send(signal.SIGSTOP)
        last_for(FREEZE_S)
        self.victim.send(signal.SIGCONT)

    def _memory(self):
        self._without(resource.RLIMIT_AS, self.victim.status("VmSize") << 10)

    def _descriptors(self):
        used = max(int(name) for name in os.listdir(f"/proc/{self.victim.pid}/fd"))
        self._without(resource.RLIMIT_NOFILE, used + 1)

    def _without(self, kind, limit):
        """A program may die of a shortage of memory, never of descriptors, and it must not spin."""
        self.limit(kind, limit)
        begin = self.victim.cpu_seconds()
        self.victim.send(signal.SIGCONT)
        last_for(SHORTAGE_S)
        if not self.victim.alive():
            if kind == resource.RLIMIT_NOFILE:
                raise Red("died when it had no descriptors")
            return self._relaunch()
        used = self.victim.cpu_seconds() - begin
        self.limit(kind, None)
        if kind == resource.RLIMIT_NOFILE and used > 0.8 * SHORTAGE_S:
            raise Red(f"spun while it had no descriptors: {used:.2f} s of CPU time in a second")
        return None

    def limit(self, kind, value):
        """None: as much as it may have."""
        if self.victim.alive():
            most = resource.prlimit(self.victim.pid, kind)[1]
            resource.prlimit(self.victim.pid, kind, (most if value is None else value, most))

    def _disk(self):
        self.disk.fill()
        self.victim.send(signal.SIGCONT)
        if not self.load.wait_good(ENOUGH, 40):
            raise Red("does not serve with a full disk")
        self.disk.empty()

    # ---- what comes after

    def _go_on_without(self):
        """A worker has a twin; nobody needs the rendezvous for what is known. One that dies while
        it is asked for the first time has told nothing yet: then all waits for its next life."""
        if self.place == "bootstrap" and self.cell.stage == "looked_up":
            return
        if self.place != "router" and not self.load.wait_good(ENOUGH, 40):
            raise Red("the others do not serve without it")

    def _relaunch(self):
        if not self.fleet.launch(self.place):
            raise Red(f"a new {self.place} does not start: see {self.victim.errors}")
        if self.place != "bootstrap":
            return
        # A worker that cannot register for 10 s ends with a sentence; who started it starts it again.
        for place in ("prefill", "decode"):
            program = self.fleet.programs[place]
            up = program.alive() and program.ready()
            if not up and not self.fleet.launch(place):
                raise Red(f"a new {place} does not start: see {program.errors}")

    def _recover(self):
        """It serves again, and so does everybody."""
        if self.place == "bootstrap":
            for place in ("prefill", "decode"):  # started when it was struck, some of them
                if not self.fleet.programs[place].ready():
                    raise Red(f"{place} did not start: see {self.fleet.programs[place].errors}")
        if not self.load.wait_good(ENOUGH, 40):
            raise Red("no good answers after the fault")
        if role_of(self.place) in ("prefill", "decode"):
            before = self.fleet.handoffs(self.place)
            if not until(lambda: self.fleet.handoffs(self.place) > before, 40, 0.05):
                raise Red(f"{self.place} gets no requests any more")

    def _judge(self, ended):
        counts = self.load.counts
        if not ended:
            raise Red("a request did not end")
        if counts.bad:
            raise Red(f"{len(counts.bad)} requests: {counts.bad[0]}")
        if counts.refused and self.place != "router":
            raise Red(f"the router refused {counts.refused} requests")

    # ---- figures

    def _measure(self):
        if self.cell.fault in ("kill", "freeze") and self.place in ("prefill", "decode"):
            lines = self.later_lines()
            self.figures.noticed = self._first(lines, self.is_lost, self.struck_ns)
            self.figures.moved = self._first(lines, self.is_moved, self.struck_ns)
        if self.cell.fault == "kill" and self.place in ("prefill", "decode", "router"):
            served = "answered" if self.place == "router" else "committed"
            self.figures.restarted = self._first(
                trace_lines(self.victim.trace),
                lambda line: line["stage"] == served and not line.get("code"),
                self.victim.started,
            )

    def later_lines(self):
        """What survivors have traced since the fault, in order."""
        lines = [
            line
            for place in self.survivors()
            for line in trace_lines(self.fleet.programs[place].trace)
            if line["wall_ns"] >= self.struck_ns
        ]
        return sorted(lines, key=lambda line: line["wall_ns"])

    @staticmethod
    def is_lost(line):
        """A worker ends a request because the other one is gone."""
        codes = ("peer_lost", "unavailable")
        return line["stage"] in ("failed", "ended") and line.get("code") in codes

    @staticmethod
    def is_moved(line):
        """The router tries other workers, or tells the client."""
        again = line["stage"] == "received" and "before" in line
        return line["side"] == "router" and (again or "code" in line)

    @staticmethod
    def _first(lines, wanted, since_ns):
        return next((1e-6 * (one["wall_ns"] - since_ns) for one in lines if wanted(one)), None)


class TinyDisk:
    """A file system that is full when it should be."""

    def __init__(self, folder, kib):
        self.folder = f"{folder}/tiny"
        os.makedirs(self.folder, exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", self.folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Skipped(f"mount of a tmpfs is not permitted: {done.stderr.strip()}")
        self.log, self.trace = f"{self.folder}/log", f"{self.folder}/trace.jsonl"

    def fill(self):
        with open(f"{self.folder}/ballast", "wb", buffering=0) as ballast:
            for piece in (1 << 20, 1 << 10):
                try:
                    while True:
                        ballast.write(bytes(piece))
                except OSError:
                    pass

    def empty(self):
        os.unlink(f"{self.folder}/ballast")

    def close(self, fleet, place):
        """The program that writes there is replaced first."""
        fleet.programs[place].end(signal.SIGTERM)
        subprocess.run(["umount", self.folder], check=False)
        fleet.launch(place)
