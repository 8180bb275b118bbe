"""Which bytes of which block go where, for engines that keep one tensor a layer."""

from __future__ import annotations

import array
from dataclasses import dataclass
from typing import Any

from ._buffers import view_of
from ._engine import Access, Engine

LAYERS_MAX = 4096


@dataclass
class Caches:
    """The KV caches of one rank: [blocks, heads, …] contiguous, one tensor a layer, in order of their
    names. `handles` name their memory."""

    layers: list[str]
    handles: list[int]
    blocks: int
    heads: int
    head_bytes: list[int]  # of one head in one block, by layer

    @classmethod
    def register(cls, engine: Engine, tensors: dict[str, Any]) -> "Caches":
        """ValueError: a tensor whose blocks are not the first dimension, heads the second."""
        names = sorted(tensors)
        shapes = {tuple(tensors[name].shape[:2]) for name in names}
        if len(shapes) != 1 or any(len(tensors[name].shape) < 3 for name in names):
            raise ValueError(f"KV caches must be [blocks, heads, …] and alike; these are {shapes}")
        blocks, heads = shapes.pop()
        handles, head_bytes = [], []
        for name in names:
            view = view_of(tensors[name])
            if view.bytes % (blocks * heads):
                raise ValueError(f"the KV cache of {name} is not made of whole heads")
            handles.append(engine.register(view, Access.REMOTE_READ).handle)
            head_bytes.append(view.bytes // (blocks * heads))
        return cls(names, handles, blocks, heads, head_bytes)

    def describe(self) -> dict:
        return dict(vars(self))

    @classmethod
    def read(cls, words: dict) -> "Caches":
        """From another rank. ValueError, KeyError, TypeError: it makes no sense."""
        caches = cls(
            [str(name) for name in words["layers"]],
            [int(handle) for handle in words["handles"]],
            int(words["blocks"]),
            int(words["heads"]),
            [int(size) for size in words["head_bytes"]],
        )
        count = len(caches.layers)
        if not 0 < count <= LAYERS_MAX or len(caches.handles) != count:
            raise ValueError("caches: layers and handles")
        if len(caches.head_bytes) != count or min(caches.head_bytes) <= 0 or caches.heads <= 0:
            raise ValueError("caches: heads")
        return caches


@dataclass(frozen=True)
class Sources:
    """The ranks of the other side that hold this rank's heads, and which of them."""

    ranks: list[int]
    theirs: list[int]  # first head, in the cache of the rank
    ours: list[int]  # first head here
    heads: int  # from each
    readers: int  # ranks of this side that read from one of theirs


def sources_of(rank: int, size: int, other_size: int, heads: int) -> Sources:
    """Equal shares of heads in order of rank, `heads` of them here. ValueError: neither size divides
    the other."""
    if other_size <= 0 or max(size, other_size) % min(size, other_size):
        raise ValueError(f"tensor parallel {other_size} to {size}: neither divides the other")
    if other_size <= size:
        ratio = size // other_size
        return Sources([rank // ratio], [rank % ratio * heads], [0], heads, ratio)
    ratio = other_size // size
    if heads % ratio:
        raise ValueError(f"{heads} heads do not come from {ratio} ranks in equal shares")
    share = heads // ratio
    return Sources(
        [rank * ratio + i for i in range(ratio)],
        [0] * ratio,
        [i * share for i in range(ratio)],
        share,
        1,
    )


class Reading:
    """One load from one rank of the other side."""

    def __init__(self, load: Any, sources: Sources, part: int, user: int):
        self.load, self.sources, self.part, self.user = load, sources, part, user
        self.rank = sources.ranks[part]
        self.peer = 0
        self.transfer = 0
        self.give_up_at = 0.0

    def offsets(self, ours: Caches, theirs: Caches) -> tuple[array.array, ...]:
        """local and remote offsets, sizes, index of the layer: of each block of each layer."""
        if ours.layers != theirs.layers or ours.head_bytes != theirs.head_bytes:
            raise ValueError("models differ: layers, dtype or tokens of a block are not the same")
        if theirs.heads < self.sources.theirs[self.part] + self.sources.heads:
            raise ValueError(f"rank {self.rank} has {theirs.heads} heads only")
        local = self.load.blocks
        remote = self.load.remote["remote_block_ids"][0]
        if len(remote) < len(local):
            raise ValueError(f"{len(local)} blocks are wanted, prefill has {len(remote)}")
        remote = remote[len(remote) - len(local) :]  # what comes before is here already
        if local and not (
            0 <= min(local) <= max(local) < ours.blocks
            and 0 <= min(remote) <= max(remote) < theirs.blocks
        ):
            raise ValueError("a block id is beyond the cache")
        here, there = array.array("Q"), array.array("Q")
        sizes, index = array.array("Q"), array.array("I")
        for layer, head in enumerate(ours.head_bytes):
            mine, other = ours.heads * head, theirs.heads * head
            first, other_first = self.sources.ours[self.part] * head, self.sources.theirs[self.part] * head
            here.extend([block * mine + first for block in local])
            there.extend([block * other + other_first for block in remote])
            sizes.extend([self.sources.heads * head] * len(local))
            index.extend([layer] * len(local))
        return here, there, sizes, index

    def submit(self, engine: Engine, ours: Caches, theirs: Caches, timeout: float) -> None:
        here, there, sizes, index = self.offsets(ours, theirs)
        self.transfer = engine.read(
            self.peer,
            ours.handles,
            theirs.handles,
            here,
            there,
            sizes=sizes,
            local_index=index,
            remote_index=index,
            timeout=timeout,
            user=self.user,
        )
