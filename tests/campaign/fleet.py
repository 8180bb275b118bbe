"""A router, a rendezvous, two prefill and two decode workers, and what they hold when they rest."""

import json
import os
import time
import urllib.request

from etcd import Etcd, free_port
from load import KvPrompts, Load, TextPrompts
from processes import PATIENCE, Program, get, until

KINDS = {
    # name: (options of every worker, prompts)
    "kv": (["--model", "tiny", "--kv-only", "--page-tokens", "16", "--pages", "400"], KvPrompts),
    "model": (["--model", "tiny", "--page-tokens", "16", "--pages", "96"], TextPrompts),
}
# Names of places in a fleet. A program may live in one after another.
PLACES = ("etcd", "bootstrap", "prefill", "prefill2", "decode", "decode2", "router")
HANDOFF_TIMEOUT_MS = 6000
RSS_SLACK_KIB = 48 << 10
CLIENTS = 4
SOCKETS_SLACK = 160  # a router's aborts to a stopped worker wait on one each, for 2 s
ETCD_SOCKETS_SLACK = 8  # connections that the rendezvous keeps to etcd
RESTED = {"requests_queued": 0, "requests_running": 0, "pages_quarantined": 0}


def role_of(place):
    return place.rstrip("2")


class Fleet:
    """`etcd`: the rendezvous keeps its records in one. `hosts` are addresses of programs that are not
    on loopback; `spaces` the commands that put a program there. The first start chooses the ports,
    later ones take the same."""

    def __init__(self, binary, folder, transport, kind, seed, etcd=False):
        self.binary, self.folder = binary, folder
        self.transport, self.kind, self.seed = transport, kind, seed
        self.hosts, self.spaces = {}, {}
        self.places = PLACES if etcd else PLACES[1:]
        self.programs = {}
        self.ports = {}
        self.lives = 0
        self.frozen = set()  # places whose program was lost while it was alive
        self.first = {}  # what was held at rest, before anything was struck
        self.prompts = None
        self.damage = False  # a control: decode workers flip a bit of what they receive

    def host(self, place):
        return self.hosts.get(role_of(place), "127.0.0.1")

    def start(self):
        """False when one of them does not come up, or does not serve."""
        if not self.open():
            return False
        warm = Load(self.router, self.prompts, CLIENTS, self.name()).start()
        good = warm.wait_good(10 * CLIENTS, PATIENCE)
        if not warm.stop() or not good or warm.counts.bad:
            return False
        self.take_stock()
        return True

    def open(self):
        options, prompts = KINDS[self.kind]
        if self.kind == "kv":
            self.prompts = prompts(self.seed)
        else:
            alone = Program(self.binary, ["worker", *options], self.folder, "alone")
            assert alone.ready(), alone.errors
            self.prompts = prompts(self.seed, alone)
            alone.end()
        return all(self.launch(place) for place in self.places)

    def launch(self, place, stop_at=None, wait=True, stderr=None, trace=None, data=None):
        """A new life in `place`. With stop_at it stops itself at that stage; `data` is where etcd
        keeps what it has, if not where it did at first."""
        self.lives += 1
        self.frozen.discard(place)
        label = f"{place}-{self.lives}"
        if place == "etcd":
            ports = self.ports.setdefault(place, (free_port(), free_port()))
            data = data or f"{self.folder}/etcd"
            self.programs[place] = Etcd(self.folder, label, ports, data)
            return self.programs[place].ready()
        host, role = self.host(place), role_of(place)
        words = [role, "--port", str(self.ports.get(place, 0)), "--host", host]
        if host != "127.0.0.1":
            words += ["--insecure", "true"]  # two namespaces of this machine, nobody else
        if role in ("prefill", "decode"):
            words[0] = "worker"
            words += [*KINDS[self.kind][0], "--role", role, "--transport", self.transport]
            words += ["--bootstrap", self.programs["bootstrap"].url()]
            words += ["--handoff-timeout-ms", str(HANDOFF_TIMEOUT_MS)]
            if self.damage and role == "decode":
                words += ["--damage-received"]
            if self.kind == "kv":
                words += ["--handoff.segment_bytes", "4096"]  # a layer at a time
        if role == "bootstrap" and "etcd" in self.programs:
            words += ["--store", "etcd", "--etcd-endpoints", self.programs["etcd"].url()]
        if role == "router":
            words += ["--pd-disaggregation", "--inject-rid", "--request-timeout-secs", "20"]
            words += ["--policy", "random"]  # so that every pair of workers meets
            words += ["--health-check-interval-secs", "0.1", "--health-check-timeout-secs", "1"]
            for worker in ("prefill", "prefill2"):
                program = self.programs[worker]
                words += ["--prefill", program.url(), str(program.port)]
            for worker in ("decode", "decode2"):
                words += ["--decode", self.programs[worker].url()]
        words += ["--trace.file", trace or f"{self.folder}/{label}.jsonl"]
        if stop_at:
            words += ["--testing.enabled", "true", "--testing.stop_at", stop_at]
        program = Program(
            self.binary, words, self.folder, label, self.spaces.get(role, ()), stderr
        )
        program.trace = trace or f"{self.folder}/{label}.jsonl"
        self.programs[place] = program
        ready = program.ready() if wait else True
        if ready and role == "bootstrap" and "etcd" in self.programs and not stop_at:
            # It listens at once, and says when it has read what etcd has.
            ready = until(lambda: get(program.url("/health"), 1))
        if program.port:
            self.ports[place] = program.port
        return ready

    def name(self):
        """Of this moment: no other load of any fleet has it."""
        return f"{self.seed}-{os.getpid()}-{time.monotonic_ns() // 1000}"

    def router(self):
        return self.host("router"), self.ports["router"]

    def survivors(self, victim):
        return [place for place in self.places if place not in ("etcd", victim)]

    def close(self):
        for program in self.programs.values():
            program.end()

    def flush(self):
        """Forgets cached prefixes, so that pages at rest are free pages."""
        for place, program in self.programs.items():
            if role_of(place) in ("prefill", "decode"):
                request = urllib.request.Request(program.url("/flush_cache"), data=b"{}")
                try:
                    urllib.request.urlopen(request, timeout=10).close()
                except OSError:
                    pass

    # ---- what is held

    def unrest(self, place):
        """Why a program without load is not at rest; "" when it is."""
        if role_of(place) not in ("prefill", "decode"):
            return ""
        values = self.programs[place].metrics()
        if not values:
            return f"{place} does not answer"
        for name, wanted in RESTED.items():
            if values[f"kvlane_worker_{name}"] != wanted:
                return f"{place} has {name} {values[f'kvlane_worker_{name}']:.0f}"
        nobody = values["kvlane_worker_pages_held"] - values["kvlane_worker_pages_cached"]
        if nobody:
            return f"{place} holds {nobody:.0f} pages of nobody"
        wrong = values["kvlane_worker_pages_wrong_total"]
        return f"{place} saw {wrong:.0f} wrong pages" if wrong else ""

    def holdings(self, place):
        program = self.programs[place]
        if not program.alive():
            return {}
        kinds = program.descriptors()
        return {
            "sockets": kinds.get("socket", 0),
            "half-closed sockets": program.half_closed(),
            "descriptors": sum(kinds.values()) - kinds.get("socket", 0),
            "memfds": kinds.get("memfd", 0),
            "mapped": program.mapped_files(),
            "threads": program.status("Threads"),
            "rss_kib": program.status("VmRSS"),
        }

    def take_stock(self):
        """Before the first fault; later comparisons are with this, so that small leaks add up."""
        until(lambda: not any(self.unrest(place) for place in self.places))
        self.first = {place: self.holdings(place) for place in self.places}

    def excess(self, survivors, patience=20):
        """What survivors hold that they did not hold at first; "" when it has all gone back."""

        def look():
            found = []
            for place in survivors:
                if unrest := self.unrest(place):
                    found.append(unrest)
                now = self.holdings(place)
                if not now:
                    found.append(f"{place} has died")
                    continue
                for name, value in self.first[place].items():
                    slack = RSS_SLACK_KIB if name == "rss_kib" else self.slack(place, name)
                    if now[name] > value + slack:
                        found.append(f"{place} has {name} {now[name]}, had {value}")
            return found

        last = []

        def done():
            last[:] = look()
            return not last

        until(done, patience, 0.05)
        return "; ".join(last)

    def slack(self, place, name):
        """Kept-alive connections come and go with the load: of the router to each worker, of a
        worker from the router. A leak shows all the same: cells have hundreds of requests. One that
        is kept though the other side has left is half-closed, and counted apart. Of a process that
        was lost and still lives, a descriptor is kept: it tells when the process is gone and cannot
        write any more. Everything else is exact."""
        if name == "descriptors":
            return len(self.frozen)
        if name == "sockets" and place == "bootstrap" and "etcd" in self.programs:
            return ETCD_SOCKETS_SLACK
        return SOCKETS_SLACK if name == "sockets" and place != "bootstrap" else 0

    def handoffs(self, place):
        return self.programs[place].metrics().get("kvlane_worker_handoffs_ok_total", 0)


def shared_files():
    """Names in /dev/shm: nothing of kvlane is ever left there."""
    return {name for name in os.listdir("/dev/shm") if "kvl" in name}


def trace_lines(path):
    """What a program has traced; a line cut off by a kill is left out."""
    lines = []
    try:
        with open(path, encoding="utf-8", errors="replace") as trace:
            for text in trace:
                try:
                    lines.append(json.loads(text))
                except ValueError:
                    continue
    except OSError:
        pass
    return lines
