"""kvlane: moves the KV cache of large language models between processes.

>>> from kvlane import Access, Engine
"""

from ._engine import Access, Buffer, Code, Engine, Error, Event, Kind, Memory, PeerInfo, version

__all__ = [
    "Access",
    "Buffer",
    "Code",
    "Engine",
    "Error",
    "Event",
    "Kind",
    "Memory",
    "PeerInfo",
    "version",
]
__version__ = version()
