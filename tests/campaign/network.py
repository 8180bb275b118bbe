"""Two hosts as network namespaces, and faults of the link between them."""

import signal
import subprocess
import time

from fleet import trace_lines
from processes import last_for
from strike import ENOUGH, Red, Skipped, Strike

HERE, THERE = "10.213.8.1", "10.213.8.2"
DOWN_S = 4.0  # well beyond the peer time-out
CRAWL = "tbf rate 64kbit burst 8kb latency 200ms"
LOSS = "netem loss 5% duplicate 1%"
DELAY = "netem delay 50ms 40ms"


class TwoHosts:
    """Namespaces kvl-c… and kvl-d…, joined; prefill workers live in the second."""

    def __init__(self, name):
        self.here, self.there = f"kvl-c{name}", f"kvl-d{name}"
        self.device = f"kvlc{name}"[:15]
        other = f"kvld{name}"[:15]
        self.missing = ""
        for command in (
            f"ip netns add {self.here}",
            f"ip netns add {self.there}",
            f"ip link add {self.device} netns {self.here} type veth peer name {other} "
            f"netns {self.there}",
            f"ip -n {self.here} addr add {HERE}/24 dev {self.device}",
            f"ip -n {self.there} addr add {THERE}/24 dev {other}",
            f"ip -n {self.here} link set lo up",
            f"ip -n {self.there} link set lo up",
            f"ip -n {self.here} link set {self.device} up",
            f"ip -n {self.there} link set {other} up",
        ):
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode != 0:
                self.missing = f"{command}: {done.stderr.strip() or 'failed'}"
                return

    def close(self):
        for space in (self.here, self.there):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


class NetworkStrike(Strike):
    """Runs inside the first namespace. The prefill worker is stopped only for as long as it takes
    to break the link."""

    device = ""  # of the link, in this namespace
    up_ns = 0

    def survivors(self):
        return self.fleet.survivors(None)

    def _run(self, command):
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Red(f"{command}: {done.stderr.strip()}")

    def _link(self):
        self._run(f"ip link set {self.device} down")
        self.struck_ns = time.time_ns()
        self.victim.send(signal.SIGCONT)
        last_for(DOWN_S)
        self._run(f"ip link set {self.device} up")
        self.up_ns = time.time_ns()

    def _crawl(self):
        self._behind(CRAWL)

    def _loss(self):
        self._behind(LOSS, serves=True)

    def _delay(self):
        self._behind(DELAY, serves=True)

    def _behind(self, discipline, serves=False):
        """Packets of this side go through a queueing discipline of the kernel for a while. `serves`:
        requests must be answered meanwhile."""
        command = f"tc qdisc add dev {self.device} root {discipline}".split()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.victim.send(signal.SIGCONT)
            raise Skipped(f"this kernel has no {discipline.split()[0]}: {done.stderr.strip()}")
        self.struck_ns = time.time_ns()
        self.victim.send(signal.SIGCONT)
        good = self.load.wait_good(ENOUGH, 60) if serves else True
        last_for(DOWN_S)
        self._run(f"tc qdisc del dev {self.device} root")
        self.up_ns = time.time_ns()
        if not good:
            raise Red(f"no good answers behind {discipline}")

    def _measure(self):
        super()._measure()
        if self.cell.fault != "link":
            return
        lines = self.later_lines()
        self.figures.noticed = self._first(lines, self.is_lost, self.struck_ns)
        self.figures.moved = self._first(lines, self.is_moved, self.struck_ns)
        committed = [
            line
            for place in ("decode", "decode2")
            for line in trace_lines(self.fleet.programs[place].trace)
            if line["stage"] == "committed" and line["wall_ns"] >= self.up_ns
        ]
        committed.sort(key=lambda line: line["wall_ns"])
        self.figures.restarted = self._first(committed, lambda line: True, self.up_ns)
