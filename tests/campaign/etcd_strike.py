"""Faults of the etcd that the rendezvous keeps its records in."""

import signal

from processes import get, last_for, until
from strike import ENOUGH, SHORTAGE_S, Red, Skipped, Strike, TinyDisk

DISK_KIB = 96 << 10  # etcd takes 64 MiB for its log before it writes the first record


class EtcdStrike(Strike):
    """Everything goes on with what is known, the rendezvous says that it may be old, and when etcd
    is back a worker can register again."""

    def _arm(self):
        if self.place not in self.fleet.programs:
            raise Skipped("etcd is not installed")
        if self.disk:
            self.victim.end(signal.SIGTERM)
            self.fleet.launch(self.place, data=f"{self.disk.folder}/data")
        self._start_load()
        if not self.load.wait_good(ENOUGH, 40):
            raise Red("no good answers before the fault")
        self.victim.send(signal.SIGSTOP)
        if self.cell.stage == "registering":
            self.fleet.programs["prefill2"].end(signal.SIGTERM)
            self.fleet.launch("prefill2", wait=False)

    def _term(self):
        self.victim.end(signal.SIGTERM)
        self._go_on_without()
        self._relaunch()

    def make_disk(self):
        return TinyDisk(self.fleet.folder, DISK_KIB)

    def _state(self):
        return get(self.fleet.programs["bootstrap"].url("/health")) or ""

    def _go_on_without(self):
        super()._go_on_without()
        if not until(lambda: '"stale"' in self._state()):
            raise Red(f"the rendezvous does not say that etcd is away: {self._state()}")

    def _without(self, kind, limit):
        """It is not ours: it may spin or die of a shortage."""
        self.limit(kind, limit)
        self.victim.send(signal.SIGCONT)
        last_for(SHORTAGE_S)
        self.limit(kind, None)
        if not self.victim.alive():
            self._relaunch()

    def _disk(self):
        """Its log is full at last, or it ends: both are as if it was away."""
        self.disk.fill()
        self.victim.send(signal.SIGCONT)
        super()._go_on_without()
        self.disk.empty()
        if not until(lambda: '"ok"' in self._state(), 3, 0.05):
            self.victim.end()
            self._relaunch(data=f"{self.disk.folder}/data")

    def _relaunch(self, data=None):
        if not self.fleet.launch(self.place, data=data):
            raise Red(f"a new {self.place} does not start: see {self.victim.errors}")

    def _recover(self):
        if not until(lambda: '"ok"' in self._state()):
            raise Red(f"the rendezvous does not say that etcd is back: {self._state()}")
        super()._recover()
        prefill = self.fleet.programs["prefill2"]
        # One that was registering goes on by itself.
        if self.cell.stage != "registering":
            prefill.end(signal.SIGTERM)
            prefill = None
        if not (prefill.ready() if prefill else self.fleet.launch("prefill2")):
            raise Red(f"a worker cannot register: see {self.fleet.programs['prefill2'].errors}")
        before = self.fleet.handoffs("prefill2")
        if not until(lambda: self.fleet.handoffs("prefill2") > before, 40, 0.05):
            raise Red("a worker that has registered since gets no requests")
