"""The matrix: a program, the stage that it has reached, and what happens to it there."""

from typing import NamedTuple

# The stages of kvl/trace.h where a program of each kind can be struck; N: the N-th time.
STAGES = {
    "prefill": (
        "queued",
        "prefill_started",
        "opened",
        "offered",
        "accepted",
        "layer:2",
        "prefill_done",
        "all_layers",
        "committed",
        "ended",
        "released",
    ),
    "decode": (
        "queued",
        "resolved",
        "reserved",
        "opened",
        "accepted",
        "layer:2",
        "all_layers",
        "committed",
        "first_token",
        "ended",
        "released",
    ),
    "router": ("received", "forwarded", "answering", "answered"),
    "bootstrap": ("registered", "looked_up"),
    # It has no stages of its own: while everything runs, and while a worker registers.
    "etcd": ("serving", "registering"),
}
FAULTS = {
    "kill": "kill -9, then a new life",
    "term": "SIGTERM, then a new life",
    "pause": "stopped for less than the peer time-out",
    "freeze": "stopped for more than the peer time-out",
    "memory": "no more address space (RLIMIT_AS) for a second",
    "descriptors": "no more descriptors (RLIMIT_NOFILE) for a second",
    "disk": "trace and log on a file system that is full",
}
# Resources run out at any time: what the short run has of them.
SHORT_RESOURCE_STAGES = {
    "prefill": ("layer:2",),
    "decode": ("layer:2",),
    "router": ("received",),
    "bootstrap": ("looked_up",),
    "etcd": ("serving",),
}
# What of the stopping faults the short run has: the stages where the other side waits for something
# else each time.
SHORT = {
    "pause": {("prefill", "layer:2"), ("decode", "committed"), ("router", "forwarded")},
    "term": {("prefill", "accepted"), ("decode", "layer:2"), ("router", "answering")},
    "freeze": {
        ("prefill", "queued"),
        ("prefill", "layer:2"),
        ("prefill", "all_layers"),
        ("decode", "reserved"),
        ("decode", "layer:2"),
        ("decode", "committed"),
        ("router", "forwarded"),
        ("bootstrap", "looked_up"),
        ("etcd", "serving"),
    },
}


# Of the link between two hosts (network.py), while prefill sends its second layer.
NETWORK_FAULTS = {
    "link": "down for more than the peer time-out, then up",
    "crawl": "64 kbit/s",
    "loss": "a packet in twenty is lost, one in a hundred comes twice",
    "delay": "50 ms more or less, so that packets overtake each other",
}


class Cell(NamedTuple):
    program: str
    stage: str
    fault: str

    def __str__(self):
        return f"{self.program} {self.stage} {self.fault}"


def all_cells():
    for fault in FAULTS:
        for program, stages in STAGES.items():
            for stage in stages:
                yield Cell(program, stage, fault)


def network_cells():
    return [Cell("prefill", "layer:2", fault) for fault in NETWORK_FAULTS]


def short_cells():
    """Every stage is struck dead; of the rest, what differs."""
    for cell in all_cells():
        if cell.fault in SHORT and (cell.program, cell.stage) not in SHORT[cell.fault]:
            continue
        if cell.fault in ("memory", "descriptors", "disk"):
            if cell.stage not in SHORT_RESOURCE_STAGES[cell.program]:
                continue
        yield cell
