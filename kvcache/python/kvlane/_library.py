"""libkvlane.so as ctypes sees it. Calls release the interpreter's lock by themselves."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint8
from ctypes import c_uint32, c_uint64, c_void_p
from pathlib import Path

ABI = 1


def _find() -> str:
    """$KVLANE_LIBRARY, the one in this package, or the machine's."""
    named = os.environ.get("KVLANE_LIBRARY")
    if named:
        return named
    inside = Path(__file__).parent / "lib" / "libkvlane.so.1"
    return str(inside) if inside.exists() else "libkvlane.so.1"


class Setting(Structure):
    _fields_ = [("name", c_char_p), ("value", c_char_p)]


class Sized(Structure):
    """Begins with its own size."""

    def __init__(self, **fields):
        super().__init__(size=ctypes.sizeof(type(self)), **fields)


class EngineOptions(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("settings", POINTER(Setting)),
        ("setting_count", c_size_t),
        ("config_file", c_char_p),
        ("ignore_environment", c_int32),
    ]


class Memory(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("data", c_void_p),
        ("bytes", c_uint64),
        ("kind", c_uint32),
        ("device", c_int32),
        ("access", c_uint32),
        ("is_shared", c_int32),
        ("shared_fd", c_int32),
        ("shared_offset", c_uint64),
    ]


class Peer(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("up", c_int32),
        ("authenticated", c_int32),
        ("encrypted", c_int32),
        ("id", c_uint8 * 16),
        ("epoch", c_uint64),
        ("transport", ctypes.c_char * 32),
    ]


class Transfer(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("peer", c_uint64),
        ("direction", c_uint32),
        ("count", c_uint64),
        ("local_offsets", c_void_p),
        ("remote_offsets", c_void_p),
        ("bytes", c_void_p),
        ("block_bytes", c_uint64),
        ("locals", c_void_p),
        ("local_count", c_size_t),
        ("remotes", c_void_p),
        ("remote_count", c_size_t),
        ("local_index", c_void_p),
        ("remote_index", c_void_p),
        ("note", c_char_p),
        ("note_bytes", c_size_t),
        ("timeout_ms", c_int64),
        ("user", c_uint64),
    ]


class Event(Structure):
    _fields_ = [
        ("kind", c_uint32),
        ("code", c_int32),
        ("quarantined", c_int32),
        ("fenced", c_int32),
        ("peer", c_uint64),
        ("transfer", c_uint64),
        ("user", c_uint64),
        ("bytes", c_uint64),
        ("epoch", c_uint64),
        ("data", c_void_p),
        ("data_bytes", c_size_t),
    ]


_FUNCTIONS = {
    "kvl_abi": (c_uint32, []),
    "kvl_version": (c_char_p, []),
    "kvl_code_name": (c_char_p, [c_int32]),
    "kvl_error": (c_char_p, []),
    "kvl_engine_open": (c_int32, [POINTER(EngineOptions), POINTER(c_void_p)]),
    "kvl_engine_close": (None, [c_void_p]),
    "kvl_engine_address": (c_size_t, [c_void_p, c_char_p, c_size_t]),
    "kvl_engine_id": (None, [c_void_p, POINTER(c_uint8)]),
    "kvl_engine_epoch": (c_uint64, [c_void_p]),
    "kvl_engine_metrics": (c_size_t, [c_void_p, c_char_p, c_size_t]),
    "kvl_memory_register": (c_int32, [c_void_p, POINTER(Memory), POINTER(c_uint64)]),
    "kvl_memory_deregister": (c_int32, [c_void_p, c_uint64]),
    "kvl_buffer_open": (c_int32, [c_uint64, POINTER(c_void_p)]),
    "kvl_buffer_close": (None, [c_void_p]),
    "kvl_buffer_memory": (c_int32, [c_void_p, POINTER(Memory)]),
    "kvl_connect": (c_int32, [c_void_p, c_char_p, POINTER(c_uint64)]),
    "kvl_disconnect": (c_int32, [c_void_p, c_uint64]),
    "kvl_peer_describe": (c_int32, [c_void_p, c_uint64, POINTER(Peer)]),
    "kvl_send": (c_int32, [c_void_p, c_uint64, c_char_p, c_size_t]),
    "kvl_submit": (c_int32, [c_void_p, POINTER(Transfer), POINTER(c_uint64)]),
    "kvl_cancel": (c_int32, [c_void_p, c_uint64, c_int64]),
    "kvl_poll": (c_size_t, [c_void_p, POINTER(Event), c_size_t, c_size_t]),
    "kvl_wait": (c_int, [c_void_p, c_int64]),
    "kvl_event_fd": (c_int, [c_void_p]),
    "kvl_arm": (c_int64, [c_void_p, c_int64]),
}


def _load():
    library = ctypes.CDLL(_find())
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.kvl_abi() != ABI:
        raise ImportError(
            f"{library._name} has ABI {library.kvl_abi()}, this package needs {ABI}: "
            "install both from one release"
        )
    return library


kvl = _load()
