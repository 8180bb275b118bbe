"""Addresses and sizes of other people's memory, without a copy: numpy arrays, torch tensors,
bytearrays, anything with the buffer protocol, the array interface or DLPack."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple


class View(NamedTuple):
    address: int
    bytes: int
    cuda: bool
    device: int  # CUDA ordinal
    keep: Any  # what must live as long as the address is used


class _DLTensor(ctypes.Structure):
    # dlpack.h, version 0.x and 1.x alike from here on
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13


def _contiguous(shape, strides, item: int) -> bool:
    expected = item
    for extent, stride in zip(reversed(shape), reversed(strides)):
        if extent > 1 and stride != expected:
            return False
        expected *= extent
    return True


def _from_interface(interface: dict, keep: Any) -> View:
    if interface["data"][1]:
        raise ValueError("memory must be writable")
    item = int(interface["typestr"][2:])
    shape = interface["shape"]
    count = 1
    for extent in shape:
        count *= extent
    strides = interface.get("strides")
    if strides is not None and not _contiguous(shape, strides, item):
        raise ValueError("memory must be contiguous")
    return View(int(interface["data"][0]), count * item, False, 0, keep)


def _from_dlpack(tensor: Any) -> View:
    capsule = tensor.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    dl = _DLTensor.from_address(get(capsule, b"dltensor"))
    if dl.device_type == _CUDA_MANAGED:
        raise ValueError("managed CUDA memory cannot be registered: it may move")
    if dl.device_type not in (_CPU, _CUDA, _CUDA_HOST):
        raise ValueError(f"memory of DLPack device {dl.device_type} cannot be registered")
    item = dl.bits * dl.lanes // 8
    shape = dl.shape[: dl.ndim]
    count = 1
    for extent in shape:
        count *= extent
    if dl.strides:
        strides = [stride * item for stride in dl.strides[: dl.ndim]]
        if not _contiguous(shape, strides, item):
            raise ValueError("memory must be contiguous")
    cuda = dl.device_type == _CUDA
    return View((dl.data or 0) + dl.byte_offset, count * item, cuda, dl.device_id if cuda else 0,
                (tensor, capsule))


def view_of(memory: Any) -> View:
    """Where `memory` is. TypeError: it has no address; ValueError: it is not one piece."""
    if isinstance(memory, View):
        return memory
    interface = getattr(memory, "__array_interface__", None)
    if interface is not None:
        return _from_interface(interface, memory)
    if hasattr(memory, "__dlpack__"):  # which says the device; the CUDA array interface does not
        return _from_dlpack(memory)
    try:
        flat = memoryview(memory)
    except TypeError:
        raise TypeError(
            f"{type(memory).__name__} has no buffer, no array interface and no DLPack"
        ) from None
    if not flat.c_contiguous:
        raise ValueError("memory must be contiguous")
    if flat.readonly:
        raise ValueError("memory must be writable")
    address = ctypes.addressof(ctypes.c_char.from_buffer(flat)) if flat.nbytes else 0
    return View(address, flat.nbytes, False, 0, flat)


def numbers_of(values: Any, bits: int, what: str) -> tuple[int, int, Any]:
    """Address, count and owner of unsigned integers of `bits`: an array of them as it is, any other
    sequence copied."""
    import array

    code = "Q" if bits == 64 else "I"
    interface = getattr(values, "__array_interface__", None)
    if interface is not None:
        kind, size = interface["typestr"][1], int(interface["typestr"][2:])
        # Signed ones are as good: a negative one is far beyond any memory.
        if kind not in "iu" or size * 8 != bits or len(interface["shape"]) != 1:
            raise TypeError(f"{what} must be a flat array of {bits}-bit integers")
        strides = interface.get("strides")
        if strides is not None and strides[0] != size and interface["shape"][0] > 1:
            raise ValueError(f"{what} must be contiguous")
        return int(interface["data"][0]), interface["shape"][0], values
    if not (isinstance(values, array.array) and values.itemsize * 8 == bits):
        values = array.array(code, values)
    address, count = values.buffer_info()
    return address, count, values
