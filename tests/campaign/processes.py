"""Programs as processes: started, stopped at a stage, killed; what the kernel says they hold."""

import ctypes
import os
import re
import resource
import select
import signal
import subprocess
import time
import urllib.error
import urllib.request

PATIENCE = 60  # seconds: for what takes milliseconds on a machine that has nothing else to do
LISTENING = re.compile(r"listening on http://(.*):(\d+)")
BOOTSTRAP = re.compile(r"for a router: --prefill \S+ (\d+)")


def until(condition, patience=PATIENCE, pause=0.01):
    """Waits until condition() is true; what it returned last. Looks again and again: most of what a
    campaign waits for (a counter of another process, its state in /proc) tells nobody."""
    deadline = time.monotonic() + patience
    while True:
        found = condition()
        if found or time.monotonic() >= deadline:
            return found
        select.select([], [], [], pause)


def last_for(seconds):
    """A fault that lasts."""
    select.select([], [], [], seconds)


def get(url, timeout=10):
    """The body of a GET; None when there is no good answer."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.read().decode()
    except (OSError, ValueError):
        return None


def _child_setup():
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no campaign leaves programs behind
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Program:
    """One life of `kvlane NAME …`. Its output goes to files in `folder`."""

    def __init__(self, binary, words, folder, label, space=(), stderr=None):
        self.label = label
        self.output = f"{folder}/{label}.out"
        self.errors = stderr or f"{folder}/{label}.err"
        self.started = time.time_ns()
        with open(self.output, "wb") as out, open(self.errors, "ab") as err:
            self.process = subprocess.Popen(
                [*space, binary, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                preexec_fn=_child_setup,
            )
        self.pid = self.process.pid
        self.port = self.bootstrap_port = 0
        self.host = ""

    def settled(self, bootstrap=False):
        """At this moment: it has named its port, or it is stopped or dead before that (a stage of
        its start was reached)."""
        with open(self.output, encoding="utf-8", errors="replace") as out:
            text = out.read()
        found, port = LISTENING.search(text), BOOTSTRAP.search(text)
        if found and (port or not bootstrap):
            self.host, self.port = found.group(1), int(found.group(2))
            self.bootstrap_port = int(port.group(1)) if port else 0
        return bool(self.port) or self.process.poll() is not None or self.stopped()

    def ready(self, bootstrap=False):
        """Waits for the line that names the port; the campaign cannot go on without."""
        until(lambda: self.settled(bootstrap))
        return self.port != 0

    def url(self, path=""):
        return f"http://{self.host}:{self.port}{path}"

    def state(self):
        """A letter of proc(5): T stopped, Z dead; "" gone."""
        try:
            with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
                return stat.read().rpartition(")")[2].split()[0]
        except OSError:
            return ""

    def stopped(self):
        return self.state() == "T"

    def alive(self):
        return self.process.poll() is None

    def send(self, number):
        if self.alive():
            os.kill(self.pid, number)

    def end(self, number=signal.SIGKILL, patience=PATIENCE):
        """Ends it; the exit status, None when it had to be killed."""
        self.send(number)
        if number != signal.SIGKILL:
            self.send(signal.SIGCONT)
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    def cpu_seconds(self):
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def status(self, key):
        with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith(key + ":"):
                    return int(line.split()[1])
        return 0

    def descriptors(self):
        """What its descriptors are, by kind."""
        kinds = {}
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                target = os.readlink(f"/proc/{self.pid}/fd/{name}")
            except OSError:
                continue
            kind = "memfd" if target.startswith("/memfd:") else target.split(":")[0]
            kinds[kind] = kinds.get(kind, 0) + 1
        return kinds

    def half_closed(self):
        """Connections that the other side has closed and this one still holds (CLOSE_WAIT)."""
        inodes = set()
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                inodes.add(os.readlink(f"/proc/{self.pid}/fd/{name}"))
            except OSError:
                continue
        with open(f"/proc/{self.pid}/net/tcp", encoding="ascii") as table:
            fields = [line.split() for line in table.readlines()[1:]]
        return sum(one[3] == "08" and f"socket:[{one[9]}]" in inodes for one in fields)

    def mapped_files(self):
        """Mappings of memory that another process may share: memfd and /dev/shm."""
        with open(f"/proc/{self.pid}/maps", encoding="ascii", errors="replace") as maps:
            return sum("/memfd:" in line or "/dev/shm/" in line for line in maps)

    def metrics(self):
        """Prometheus text as {name: value}, labels summed over; {} when it does not answer."""
        values = {}
        for line in (get(self.url("/metrics")) or "").splitlines():
            name, _, value = line.rpartition(" ")
            if name and not line.startswith("#"):
                name = name.split("{")[0]
                values[name] = values.get(name, 0) + float(value)
        return values
