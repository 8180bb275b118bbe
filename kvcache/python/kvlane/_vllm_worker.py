"""One rank of a vLLM engine: its kvlane engine, the leases it has given, the loads it is doing.

Ranks talk by messages of the engine, JSON: "caches" asks where the caches are, "here" says it; "begin" asks
leave to read a request's blocks, "answer" gives it or not; "done" gives it back.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Optional

from vllm.logger import init_logger

from ._engine import Code, Engine, Error, Event, Kind
from ._plan import Caches, Reading, sources_of

logger = init_logger("vllm.kvlane")

VERSION = 1  # of the messages between workers
ENDED_MAX = 4096  # requests that are remembered after their lease


@dataclass
class Load:
    """A request whose blocks decode reads. `wanted` is False where all of it is here already: prefill
    is only told that it may let go."""

    request: str
    blocks: list[int]
    remote: dict
    wanted: bool = True


@dataclass
class Config:
    host: str = "127.0.0.1"
    port: int = 21000
    lease_s: float = 30.0
    transfer_s: float = 20.0
    settings: dict = field(default_factory=dict)

    @classmethod
    def read(cls, extra: dict) -> "Config":
        unknown = set(extra) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"kv_connector_extra_config: unknown {', '.join(sorted(unknown))}")
        config = cls(**extra)
        if config.transfer_s >= config.lease_s:
            raise ValueError("kv_connector_extra_config: transfer_s must be shorter than lease_s")
        return config


class Worker:
    """One rank: its engine, the leases it has given, the loads it is doing. A thread takes the
    engine's events; what the scheduler's thread wants to know stands in queues."""

    def __init__(self, config: Config, rank: int, size: int):
        self.config, self.rank, self.size = config, rank, size
        settings = {"listen": f"{config.host}:{config.port + rank}", **config.settings}
        self.engine = Engine(settings)
        self.caches: Optional[Caches] = None
        self.sent: "queue.SimpleQueue[str]" = queue.SimpleQueue()
        self.received: "queue.SimpleQueue[str]" = queue.SimpleQueue()
        self.failed: "queue.SimpleQueue[Load]" = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the rest
        self._leases: dict[str, float] = {}  # until when
        self._pinned: dict[str, int] = {}  # by how many readers
        self._done: dict[str, int] = {}
        self._ended: "deque[str]" = deque(maxlen=ENDED_MAX)
        # Decode may be faster than this engine's next step, which brings the lease: until when.
        self._asking: dict[str, list[tuple[int, dict, float]]] = {}
        self._peers: dict[int, _Peer] = {}
        self._by_address: dict[str, int] = {}
        self._readings: dict[int, Reading] = {}  # by `user` of their transfers
        self._loads: dict[str, int] = {}  # parts of a request that are not over
        self._lost: set[str] = set()
        self._next = 1
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="kvlane", daemon=True)

    def start(self, kv_caches: dict) -> None:
        self.caches = Caches.register(self.engine, kv_caches)
        self._thread.start()

    def close(self) -> None:
        self._stop = True
        if self._thread.is_alive():
            self._thread.join(5)
        self.engine.close()

    # ---- prefill

    def lease(self, request: str, seconds: float) -> None:
        with self._lock:
            self._leases[request] = time.monotonic() + seconds
            for peer, message, _ in self._asking.pop(request, []):
                self._answer_ask(peer, message, True)
            if self._done.get(request, 0) < 0:  # they had all they wanted before
                self._end_lease(request)

    def _ask(self, peer: int, message: dict) -> None:
        """A reader wants to begin: a lease that is still there stays until it is done, or gone."""
        request = message["request"]
        with self._lock:
            if request in self._leases or request in self._ended:
                self._answer_ask(peer, message, request in self._leases)
            else:
                until = time.monotonic() + self.config.transfer_s / 2
                self._asking.setdefault(request, []).append((peer, message, until))

    def _answer_ask(self, peer: int, message: dict, granted: bool) -> None:
        request = message["request"]
        if granted:
            self._pinned[request] = self._pinned.get(request, 0) + 1
            self._peer(peer).pins.append(request)
        self._send(peer, {"op": "answer", "load": message["load"], "granted": granted})

    def _end_lease(self, request: str) -> None:
        self._leases.pop(request, None)
        self._done.pop(request, None)
        self._ended.append(request)
        self.sent.put(request)

    def _finish(self, peer: int, message: dict) -> None:
        request = message["request"]
        with self._lock:
            self._unpin(peer, request)
            # A reader that gave up while it waited for the lease must not get it later.
            asks = self._asking.pop(request, [])
            if any(ask[0] != peer for ask in asks):
                self._asking[request] = [ask for ask in asks if ask[0] != peer]
            if request in self._ended:
                return
            self._done[request] = self._done.get(request, 0) + 1
            if len(self._done) > ENDED_MAX:  # of requests that were never leased here
                self._done.pop(next(iter(self._done)))
            if self._done.get(request, 0) < int(message["readers"]):
                return
            if request in self._leases:
                self._end_lease(request)
            else:
                self._done[request] = -1

    def _unpin(self, peer: int, request: str) -> None:
        pins = self._peer(peer).pins
        if request in pins:
            pins.remove(request)
            self._pinned[request] -= 1
            if not self._pinned[request]:
                del self._pinned[request]

    def _expire(self) -> None:
        now = time.monotonic()
        with self._lock:
            for request, end in list(self._leases.items()):
                if end < now and request not in self._pinned:
                    logger.warning("the lease of %s is over: nobody has read its blocks", request)
                    self._end_lease(request)
            for request, asks in list(self._asking.items()):
                for ask in [ask for ask in asks if ask[2] < now]:
                    asks.remove(ask)
                    self._answer_ask(ask[0], ask[1], False)
                if not asks:
                    del self._asking[request]

    # ---- decode

    def load(self, load: Load) -> None:
        """Begins; its end comes by `received` or `failed`."""
        remote = load.remote
        try:
            sources = sources_of(self.rank, self.size, int(remote["tp_size"]), self.caches.heads)
            with self._lock:
                self._loads[load.request] = len(sources.ranks)
                self._lost.discard(load.request)
                for part in range(len(sources.ranks)):
                    reading = Reading(load, sources, part, self._next)
                    self._next += 1
                    self._readings[reading.user] = reading
                    self._begin(reading)
        except (Error, ValueError, KeyError, TypeError) as error:
            logger.warning("the blocks of %s cannot be read: %s", load.request, error)
            with self._lock:
                self._loads.pop(load.request, None)
            self._report(load, False)

    def _begin(self, reading: Reading) -> None:
        remote = reading.load.remote
        address = f"{remote['remote_host']}:{int(remote['remote_port']) + reading.rank}"
        handle = self._by_address.get(address)
        if handle is None:
            handle = self._by_address[address] = self.engine.connect(address)
        reading.peer = handle
        reading.give_up_at = time.monotonic() + self.config.transfer_s
        peer = self._peer(handle)
        if not peer.up:
            peer.waiting.append(reading)
        else:
            self._send_begin(peer, reading)

    def _send_begin(self, peer: "_Peer", reading: Reading) -> None:
        if peer.caches is None and not peer.asked:
            peer.asked = True
            self._send(reading.peer, {"op": "caches"})
        if not reading.load.wanted:
            self._done_with(reading)
            return self._over(reading, True)
        self._send(
            reading.peer,
            {"op": "begin", "load": reading.user, "request": reading.load.remote["remote_request_id"]},
        )
        return None

    def _answer(self, message: dict) -> None:
        with self._lock:
            reading = self._readings.get(int(message["load"]))
            if reading is None:
                return
            if not message["granted"]:
                logger.warning("prefill does not have %s any more", reading.load.request)
                return self._over(reading, False)
            caches = self._peer(reading.peer).caches
            try:
                if caches is None:
                    raise ValueError("prefill has not said where its caches are")
                reading.submit(self.engine, self.caches, caches, self.config.transfer_s)
            except (Error, ValueError, TypeError, LookupError, OverflowError) as error:
                logger.warning("the blocks of %s cannot be read: %s", reading.load.request, error)
                self._done_with(reading)
                self._over(reading, False)
        return None

    def _done_with(self, reading: Reading) -> None:
        self._send(
            reading.peer,
            {
                "op": "done",
                "request": reading.load.remote["remote_request_id"],
                "readers": reading.sources.readers,
            },
        )

    def _over(self, reading: Reading, good: bool) -> None:
        """One part of a load; the load is over with its last one."""
        del self._readings[reading.user]
        request = reading.load.request
        if not good:
            self._lost.add(request)
        self._loads[request] -= 1
        if self._loads[request]:
            return
        del self._loads[request]
        lost = request in self._lost
        self._lost.discard(request)
        self._report(reading.load, not lost)

    def _report(self, load: Load, good: bool) -> None:
        if not load.wanted:
            return
        if good:
            self.received.put(load.request)
        else:
            self.failed.put(load)

    # ---- both

    def _peer(self, handle: int) -> "_Peer":
        return self._peers.setdefault(handle, _Peer())

    def _send(self, peer: int, message: dict) -> None:
        try:
            self.engine.send(peer, json.dumps({"v": VERSION, **message}).encode())
        except Error as error:
            logger.warning("a message to another worker is lost: %s", error)

    def _run(self) -> None:
        while not self._stop:
            try:
                for event in self.engine.poll(timeout=0.2):
                    self._take(event)
                self._expire()
                self._give_up()
            except Exception:  # the thread is all that this rank has
                logger.exception("kvlane")

    def _take(self, event: Event) -> None:
        if event.kind == Kind.MESSAGE:
            self._message(event.peer, event.data)
        elif event.kind == Kind.TRANSFER:
            with self._lock:
                reading = self._readings.get(event.user)
                if reading is None:
                    return
                if event.code != Code.OK:
                    logger.warning("reading %s failed: %s", reading.load.request, event.code.name)
                self._done_with(reading)
                self._over(reading, event.code == Code.OK)
        elif event.kind == Kind.PEER_UP:
            with self._lock:
                peer = self._peer(event.peer)
                peer.up = True
                waiting, peer.waiting = peer.waiting, []
                for reading in waiting:
                    self._send_begin(peer, reading)
        elif event.kind == Kind.PEER_DOWN:
            self._gone(event)

    def _gone(self, event: Event) -> None:
        with self._lock:
            peer = self._peer(event.peer)
            peer.up, peer.asked, peer.caches = False, False, None
            # What it is still reading it gives up after transfer_s: no block is free before.
            until = time.monotonic() + self.config.transfer_s
            for request in list(peer.pins):
                self._unpin(event.peer, request)
                if request in self._leases:
                    self._leases[request] = max(self._leases[request], until)
            # Those with a transfer hear of it by its own event.
            for reading in [r for r in self._readings.values() if r.peer == event.peer]:
                if not reading.transfer:
                    logger.warning("prefill is lost: %s", reading.load.request)
                    self._over(reading, False)
            peer.waiting = []

    def _give_up(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [
                r for r in self._readings.values() if not r.transfer and r.give_up_at < now
            ]
            for reading in late:
                logger.warning("prefill does not answer: %s", reading.load.request)
                peer = self._peer(reading.peer)
                if reading in peer.waiting:
                    peer.waiting.remove(reading)
                else:  # leave that comes from now on would never be given back
                    self._done_with(reading)
                self._over(reading, False)

    def _message(self, peer: int, data: bytes) -> None:
        try:
            message = json.loads(data)
            if message["v"] != VERSION:
                raise ValueError(f"version {message['v']}, {VERSION} here")
            op = message["op"]
            if op == "caches":
                self._send(peer, {"op": "here", "caches": self.caches.describe()})
            elif op == "here":
                with self._lock:
                    self._peer(peer).caches = Caches.read(message["caches"])
            elif op == "begin":
                self._ask(peer, message)
            elif op == "answer":
                self._answer(message)
            elif op == "done":
                self._finish(peer, message)
            else:
                raise ValueError(f"unknown op {op!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("a message of another worker makes no sense: %r", error)


@dataclass
class _Peer:
    up: bool = False
    asked: bool = False
    caches: Optional[Caches] = None
    waiting: list = field(default_factory=list)
    pins: list = field(default_factory=list)  # leases of ours that it reads under
