"""vLLM's KV connector over kvlane: decode reads the blocks that prefill has computed.

    --kv-transfer-config '{"kv_connector": "KvlaneConnector",
                           "kv_connector_module_path": "kvlane.vllm",
                           "kv_role": "kv_both",
                           "kv_connector_extra_config": {"host": "10.0.0.1", "port": 21000}}'

Prefill answers a request with `do_remote_decode` by the parameters that decode needs (vLLM's names:
remote_engine_id, remote_request_id, remote_block_ids, remote_host, remote_port, tp_size) and keeps its
blocks under a lease. Each decode rank asks the prefill ranks that hold its heads for leave, reads all
layers in one transfer each, says that it is done. What was lost on the way is reported as a failed
load: vLLM fails or recomputes it, as kv_load_failure_policy says.

kv_connector_extra_config: host ("127.0.0.1") and port (21000; rank r has port + r) that the other side
reaches, lease_s (30), transfer_s (20; shorter than a lease), settings ({}: kvlane's own, by name).
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Iterable, Optional

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.distributed.parallel_state import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.logger import init_logger
from vllm.v1.request import RequestStatus

from ._engine import Code, Engine, Error, Event, Kind
from ._plan import Caches, Reading, sources_of

logger = init_logger("vllm.kvlane")

VERSION = 1  # of the messages between workers
ENDED_MAX = 4096  # requests that are remembered after their lease
# Of kv_transfer_params: what decode cannot do without.
NEEDED = ("remote_block_ids", "remote_request_id", "remote_host", "remote_port", "tp_size")


@dataclass
class Load:
    """A request whose blocks decode reads. `wanted` is False where all of it is here already: prefill
    is only told that it may let go."""

    request: str
    blocks: list[int]
    remote: dict
    wanted: bool = True


@dataclass
class Metadata(KVConnectorMetadata):
    loads: list[Load] = field(default_factory=list)
    leases: dict[str, float] = field(default_factory=dict)  # request to seconds


@dataclass
class _Config:
    host: str = "127.0.0.1"
    port: int = 21000
    lease_s: float = 30.0
    transfer_s: float = 20.0
    settings: dict = field(default_factory=dict)

    @classmethod
    def read(cls, extra: dict) -> "_Config":
        unknown = set(extra) - set(cls.__dataclass_fields__)
        if unknown:
            raise ValueError(f"kv_connector_extra_config: unknown {', '.join(sorted(unknown))}")
        config = cls(**extra)
        if config.transfer_s >= config.lease_s:
            raise ValueError("kv_connector_extra_config: transfer_s must be shorter than lease_s")
        return config


class _Worker:
    """One rank: its engine, the leases it has given, the loads it is doing. A thread takes the
    engine's events; what the scheduler's thread wants to know stands in queues."""

    def __init__(self, config: _Config, rank: int, size: int):
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


class KvlaneConnector(KVConnectorBase_V1, SupportsHMA):
    """See the module. The scheduler's half decides and names, the worker's half moves."""

    def __init__(self, vllm_config, role, kv_cache_config=None):
        super().__init__(vllm_config, role, kv_cache_config)
        self._config = _Config.read(dict(self._kv_transfer_config.kv_connector_extra_config or {}))
        groups = getattr(kv_cache_config, "kv_cache_groups", None)
        if groups is not None and len(groups) > 1:
            raise ValueError(
                "kvlane.vllm moves models with one group of KV caches; this one is a hybrid"
            )
        _refuse_what_is_not_moved(vllm_config)
        self._bad: set[int] = set()
        self._engine_id = self._kv_transfer_config.engine_id
        self._loads: dict[str, Load] = {}
        self._leases: dict[str, float] = {}
        self._worker: Optional[_Worker] = None
        if role == KVConnectorRole.WORKER:
            self._worker = _Worker(
                self._config,
                get_tensor_model_parallel_rank(),
                get_tensor_model_parallel_world_size(),
            )

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config):
        """Heads before tokens, so that the heads of one rank are one piece of a block."""
        return "LBHNC"

    # ---- worker

    def register_kv_caches(self, kv_caches):
        self._worker.start(kv_caches)

    def start_load_kv(self, forward_context, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        for request, seconds in metadata.leases.items():
            self._worker.lease(request, seconds)
        for load in metadata.loads:
            self._worker.load(load)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are over before their requests are scheduled."""

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs: Any) -> None:
        """Decode reads."""

    def wait_for_save(self):
        """Decode reads."""

    def get_finished(self, finished_req_ids):
        return set(_all(self._worker.sent)), set(_all(self._worker.received))

    def get_transfer_results(self, finished_req_ids):
        results = super().get_transfer_results(finished_req_ids)
        self._bad = set()
        for load in _all(self._worker.failed):
            results.finished_recving.add(load.request)
            results.failed_recving.add(load.request)
            self._bad.update(load.blocks)
        return results

    def get_block_ids_with_load_errors(self):
        bad, self._bad = self._bad, set()
        return bad

    def shutdown(self):
        if self._worker is not None:
            self._worker.close()

    # ---- scheduler

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill"):
            missing = _missing(params)
            if missing:  # said here: a request whose load was promised would wait for it
                logger.warning(
                    "kv_transfer_params without %s: it is computed here", ", ".join(missing)
                )
                params["do_remote_prefill"] = False
                return 0, False
            count = request.num_prompt_tokens - num_computed_tokens
            if count > 0:
                return count, True
        return 0, False

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        params = request.kv_transfer_params
        if not (params and params.get("do_remote_prefill")):
            return
        params["do_remote_prefill"] = False
        ids: list[int] = []
        if num_external_tokens > 0:
            ids = list(blocks.get_unhashed_block_ids_all_groups()[0])
        self._loads[request.request_id] = Load(
            request.request_id, ids, dict(params), num_external_tokens > 0
        )

    def build_connector_meta(self, scheduler_output):
        metadata = Metadata(list(self._loads.values()), self._leases)
        self._loads, self._leases = {}, {}
        return metadata

    def get_loaded_kv_cache_group_ids(self, request):
        return self._kv_cache_config.transfer_group_ids

    def request_finished(self, request, block_ids):
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(self, request, block_ids):
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill") and not _missing(params):
            # Over before it had blocks: prefill need not keep its own for the whole lease.
            params["do_remote_prefill"] = False
            self._loads[request.request_id] = Load(request.request_id, [], dict(params), False)
            return False, None
        if not (params and params.get("do_remote_decode")):
            return False, None
        if request.status not in (
            RequestStatus.FINISHED_LENGTH_CAPPED,
            RequestStatus.FINISHED_STOPPED,
        ):
            return False, None
        self._leases[request.request_id] = self._config.lease_s
        return True, {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self._engine_id,
            "remote_request_id": request.request_id,
            "remote_block_ids": [list(group) for group in block_ids],
            "remote_host": self._config.host,
            "remote_port": self._config.port,
            "tp_size": self._vllm_config.parallel_config.tensor_parallel_size,
            "remote_num_tokens": request.num_computed_tokens,
        }


def _refuse_what_is_not_moved(vllm_config) -> None:
    """Caches of these look like caches of heads, and would be moved wrongly."""
    if vllm_config.model_config.use_mla:
        raise ValueError("kvlane.vllm does not move MLA caches, which have no heads to share out")
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError("kvlane.vllm does not move caches of pipeline-parallel engines")


class NixlConnector(KvlaneConnector):
    """The same under the name that Dynamo's table of connectors knows."""


def _missing(params: dict) -> list[str]:
    return [name for name in NEEDED if params.get(name) is None]


def _all(values: "queue.SimpleQueue") -> Iterable:
    while True:
        try:
            yield values.get_nowait()
        except queue.Empty:
            return
