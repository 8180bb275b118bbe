"""The engine: register memory, connect to peers, move blocks, be told."""

from __future__ import annotations

import asyncio
import ctypes
import enum
import threading
import time
from dataclasses import dataclass
from typing import Any, Mapping, Optional

from . import _library as lib
from ._buffers import View, numbers_of, view_of
from ._library import kvl


SLICE = 0.25  # seconds that a wait may outlive close()


class Code(enum.IntEnum):
    """What went wrong, and so what may be done about it."""

    OK = 0
    INVALID_ARGUMENT = 1
    NOT_FOUND = 2
    UNSUPPORTED = 3
    EXHAUSTED = 4
    UNAVAILABLE = 5
    PEER_LOST = 6
    TIMED_OUT = 7
    ABORTED = 8
    PERMISSION = 9
    CORRUPT = 10
    INTERNAL = 11


class Error(RuntimeError):
    """A call that failed. `code` is a Code."""

    def __init__(self, code: int, sentence: str):
        super().__init__(sentence)
        self.code = Code(code)


def _check(code: int) -> None:
    if code != 0:
        raise Error(code, kvl.kvl_error().decode(errors="replace"))


class Access(enum.IntFlag):
    """What peers may do with registered memory."""

    LOCAL = 0
    REMOTE_READ = 1
    REMOTE_WRITE = 2
    REMOTE_ALL = 3


class Kind(enum.IntEnum):
    """What an Event tells: the end of a transfer, its late proof, a note, a message, a peer."""

    TRANSFER = 0
    PROVEN = 1
    NOTE = 2
    MESSAGE = 3
    PEER_UP = 4
    PEER_DOWN = 5


@dataclass(frozen=True)
class Event:
    """`quarantined`: of a transfer that failed; pages of the peer may still be written by it, until
    PROVEN comes or its peer is down with `fenced`. `bytes` were acknowledged."""

    kind: Kind
    code: Code
    quarantined: bool
    fenced: bool
    peer: int
    transfer: int
    user: int
    bytes: int
    epoch: int
    data: bytes


@dataclass(frozen=True)
class PeerInfo:
    """A peer as it is now. `transport`: what carries; "" while it is down."""

    up: bool
    authenticated: bool
    encrypted: bool
    id: bytes
    epoch: int
    transport: str


class Buffer:
    """Host memory that peers on this host can map: what KV pages should be in. Zero-filled, page
    aligned; a writable buffer of `bytes` bytes for numpy.frombuffer() and the like. Freed by close()
    and by the garbage collector: deregister it first."""

    def __init__(self, bytes: int):
        handle = ctypes.c_void_p()
        _check(kvl.kvl_buffer_open(bytes, ctypes.byref(handle)))
        self._handle: Optional[int] = handle.value
        self._memory = lib.Memory()
        _check(kvl.kvl_buffer_memory(handle, ctypes.byref(self._memory)))
        self.bytes = bytes

    @property
    def memory(self) -> memoryview:
        """uint8[bytes], writable. Not to be used after close()."""
        if self._handle is None:
            raise ValueError("the buffer is closed")
        whole = (ctypes.c_uint8 * self.bytes).from_address(self._memory.data)
        whole._owner = self  # as long as somebody looks at it
        return memoryview(whole).cast("B")

    @property
    def __array_interface__(self) -> dict:
        if self._handle is None:
            raise ValueError("the buffer is closed")
        return {
            "version": 3,
            "shape": (self.bytes,),
            "typestr": "|u1",
            "data": (self._memory.data, False),
        }

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            kvl.kvl_buffer_close(handle)

    def __del__(self):
        if getattr(self, "_handle", None) is not None:
            self.close()


class Memory:
    """Registered memory. `handle` is a plain number that names it here and for peers: send it to them
    beside the engine's address."""

    def __init__(self, engine: "Engine", handle: int, bytes: int):
        self._engine, self.handle, self.bytes = engine, handle, bytes

    def deregister(self) -> None:
        """After return no peer can reach it. EXHAUSTED while a transfer of ours uses it."""
        _check(kvl.kvl_memory_deregister(self._engine._open, self.handle))
        self._engine._keep.pop(self.handle, None)

    def __int__(self) -> int:
        return self.handle


def _handles(memories: Any) -> tuple[Any, int]:
    if isinstance(memories, (int, Memory)):
        memories = (memories,)
    array = (ctypes.c_uint64 * len(memories))(*[int(memory) for memory in memories])
    return array, len(memories)


class Engine:
    """One engine of this process: rails to every peer behind one queue of events.

    engine = Engine({"listen": "0.0.0.0:0"})       # settings by name, as `kvlane config` lists them
    memory = engine.register(array, Access.REMOTE_WRITE)
    peer = engine.connect(address)
    engine.write(peer, memory, remote_handle, local_offsets, remote_offsets, block_bytes=16384)
    for event in engine.poll(timeout=1.0): ...

    Methods may be called by any thread; poll() and what awaits by one at a time. A thread that waits
    holds no interpreter lock. Also a context manager.
    """

    def __init__(
        self,
        settings: Optional[Mapping[str, Any]] = None,
        *,
        config_file: Optional[str] = None,
        environment: bool = True,
    ):
        """`environment`: KVLANE_* variables are read. Raises Error."""
        rows = (lib.Setting * len(settings or {}))(
            *[
                lib.Setting(name.encode(), _text(value).encode())
                for name, value in (settings or {}).items()
            ]
        )
        options = lib.EngineOptions(
            settings=rows,
            setting_count=len(rows),
            config_file=config_file.encode() if config_file else None,
            ignore_environment=0 if environment else 1,
        )
        handle = ctypes.c_void_p()
        _check(kvl.kvl_engine_open(ctypes.byref(options), ctypes.byref(handle)))
        self._handle: Optional[int] = handle.value
        self._events = (lib.Event * 256)()
        self._polling = threading.Lock()
        self._keep: dict[int, Any] = {}  # registered memory, by handle

    @property
    def _open(self) -> int:
        if self._handle is None:
            raise ValueError("the engine is closed")
        return self._handle

    def close(self) -> None:
        """Open transfers end without an event; nothing touches memory after return."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with self._polling:  # a poll() of another thread ends first
                kvl.kvl_engine_close(handle)
            self._keep.clear()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self):
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _string(self, function) -> str:
        length = function(self._open, None, 0)
        while True:
            room = length + 1
            text = ctypes.create_string_buffer(room)
            length = function(self._open, text, room)
            if length < room:
                return text.value.decode(errors="replace")

    @property
    def address(self) -> str:
        """What peers pass to connect()."""
        return self._string(kvl.kvl_engine_address)

    @property
    def id(self) -> bytes:
        """16 bytes that name this engine for its lifetime."""
        id16 = (ctypes.c_uint8 * 16)()
        kvl.kvl_engine_id(self._open, id16)
        return bytes(id16)

    @property
    def epoch(self) -> int:
        return int(kvl.kvl_engine_epoch(self._open))

    def metrics(self) -> str:
        """Prometheus text."""
        return self._string(kvl.kvl_engine_metrics)

    def register(self, memory: Any, access: Access = Access.LOCAL) -> Memory:
        """Memory of a Buffer, a numpy array, a torch tensor, a bytearray, …: contiguous, writable; it
        is kept alive until deregister(). A Buffer is what peers on this host copy fastest."""
        if isinstance(memory, Buffer):
            row = lib.Memory()
            _check(kvl.kvl_buffer_memory(memory._handle, ctypes.byref(row)))
            keep: Any = memory
        else:
            view: View = view_of(memory)
            row = lib.Memory(
                data=view.address, bytes=view.bytes, kind=1 if view.cuda else 0, device=view.device
            )
            keep = view.keep
        row.access = int(access)
        handle = ctypes.c_uint64()
        _check(kvl.kvl_memory_register(self._open, ctypes.byref(row), ctypes.byref(handle)))
        self._keep[handle.value] = keep  # peers may write there, whoever forgets the Memory
        return Memory(self, handle.value, row.bytes)

    def connect(self, address: str) -> int:
        """A peer's handle, at once; PEER_UP or PEER_DOWN follows. Transfers may be submitted
        before."""
        peer = ctypes.c_uint64()
        _check(kvl.kvl_connect(self._open, address.encode(), ctypes.byref(peer)))
        return peer.value

    def disconnect(self, peer: int) -> None:
        _check(kvl.kvl_disconnect(self._open, peer))

    def describe(self, peer: int) -> PeerInfo:
        info = lib.Peer()
        _check(kvl.kvl_peer_describe(self._open, peer, ctypes.byref(info)))
        return PeerInfo(
            bool(info.up),
            bool(info.authenticated),
            bool(info.encrypted),
            bytes(info.id),
            info.epoch,
            info.transport.decode(),
        )

    def send(self, peer: int, message: bytes) -> None:
        """Arrives as MESSAGE, after what was sent before. At most 4 MiB."""
        _check(kvl.kvl_send(self._open, peer, bytes(message), len(message)))

    def write(self, peer: int, local: Any, remote: Any, local_offsets: Any, remote_offsets: Any,
              **options: Any) -> int:
        """Blocks from `local` to the peer's `remote`; see transfer()."""
        return self.transfer(0, peer, local, remote, local_offsets, remote_offsets, **options)

    def read(self, peer: int, local: Any, remote: Any, local_offsets: Any, remote_offsets: Any,
             **options: Any) -> int:
        """Blocks from the peer's `remote` to `local`; see transfer()."""
        return self.transfer(1, peer, local, remote, local_offsets, remote_offsets, **options)

    def transfer(
        self,
        direction: int,
        peer: int,
        local: Any,
        remote: Any,
        local_offsets: Any,
        remote_offsets: Any,
        *,
        block_bytes: int = 0,
        sizes: Any = None,
        local_index: Any = None,
        remote_index: Any = None,
        note: bytes = b"",
        timeout: float = 0,
        user: int = 0,
    ) -> int:
        """Submits blocks in one call; the transfer's id. Exactly one TRANSFER event follows.

        local, remote: Memory or handle, or a list of them
        local_offsets, remote_offsets: uint64[blocks], bytes; numpy arrays and array('Q') are not copied
        block_bytes: of every block; or sizes: uint64[blocks]
        local_index, remote_index: uint32[blocks], which of the memories; else the first
        note: at most 24 bytes that the peer sees when every byte is there (write only)
        timeout: seconds; 0: the setting transfer_timeout_ms
        """
        at_local, count, keep1 = numbers_of(local_offsets, 64, "local_offsets")
        at_remote, other, keep2 = numbers_of(remote_offsets, 64, "remote_offsets")
        if count != other:
            raise ValueError(f"{count} local and {other} remote offsets")
        locals_, local_count = _handles(local)
        remotes, remote_count = _handles(remote)
        row = lib.Transfer(
            peer=peer,
            direction=direction,
            count=count,
            local_offsets=at_local,
            remote_offsets=at_remote,
            block_bytes=block_bytes,
            locals=ctypes.addressof(locals_),
            local_count=local_count,
            remotes=ctypes.addressof(remotes),
            remote_count=remote_count,
            note=bytes(note),
            note_bytes=len(note),
            timeout_ms=int(timeout * 1000),
            user=user,
        )
        keep = [keep1, keep2]
        for name, values, bits in (
            ("bytes", sizes, 64),
            ("local_index", local_index, 32),
            ("remote_index", remote_index, 32),
        ):
            if values is None:
                continue
            address, length, owner = numbers_of(values, bits, name)
            if length != count:
                raise ValueError(f"{length} values in {name} for {count} blocks")
            setattr(row, name, address)
            keep.append(owner)
        transfer = ctypes.c_uint64()
        _check(kvl.kvl_submit(self._open, ctypes.byref(row), ctypes.byref(transfer)))
        del keep
        return transfer.value

    def cancel(self, transfer: int, deadline: float = 0) -> None:
        """Its event comes with ABORTED (or OK), quarantined if nothing is proven in `deadline` s."""
        _check(kvl.kvl_cancel(self._open, transfer, int(deadline * 1000)))

    def poll(self, timeout: float = 0) -> list[Event]:
        """Events, oldest first; waits for the first one for `timeout` seconds."""
        end = time.monotonic() + timeout
        with self._polling:
            events = self._take()
            while not events:
                left = min(end - time.monotonic(), SLICE)
                if left <= 0 or self._handle is None:  # close() waits for us
                    break
                if kvl.kvl_wait(self._open, int(left * 1000) + 1):
                    events = self._take()
            return events

    def _take(self) -> list[Event]:
        count = kvl.kvl_poll(
            self._open, self._events, len(self._events), ctypes.sizeof(lib.Event)
        )
        return [
            Event(
                Kind(row.kind),
                Code(row.code),
                bool(row.quarantined),
                bool(row.fenced),
                row.peer,
                row.transfer,
                row.user,
                row.bytes,
                row.epoch,
                ctypes.string_at(row.data, row.data_bytes) if row.data_bytes else b"",
            )
            for row in self._events[:count]
        ]

    def fileno(self) -> int:
        """Readable when poll() has something; for select and event loops that call arm() before they
        sleep."""
        return int(kvl.kvl_event_fd(self._open))

    def arm(self, most: float) -> float:
        """How many seconds a sleep on fileno() may last; 0: poll() first."""
        return kvl.kvl_arm(self._open, int(most * 1000)) / 1000

    async def events(self) -> list[Event]:
        """At least one event, without blocking the event loop."""
        loop = asyncio.get_running_loop()
        while True:
            found = self.poll()
            if found:
                return found
            pause = self.arm(1.0)
            if pause == 0:
                continue
            ready = loop.create_future()
            loop.add_reader(self.fileno(), lambda: ready.done() or ready.set_result(None))
            try:
                await asyncio.wait_for(ready, pause)
            except asyncio.TimeoutError:
                pass  # the engine's own timers run in poll()
            finally:
                loop.remove_reader(self.fileno())


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def version() -> str:
    """Of the library."""
    return kvl.kvl_version().decode()
