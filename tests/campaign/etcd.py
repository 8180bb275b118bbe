"""An etcd of one member, for the rendezvous of a fleet: a place in it like any other program."""

import os
import shutil
import socket

from processes import Program, get, until

BINARY = shutil.which("etcd") or "/usr/bin/etcd"


def installed():
    return os.access(BINARY, os.X_OK)


def free_port():
    """Free a moment ago: etcd must be told its ports before it starts."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Etcd(Program):
    """One life. `ports` are those of clients and of peers; what it keeps is in `data`."""

    trace = ""  # it has none

    def __init__(self, folder, label, ports, data, stderr=None):
        client, peer = (f"http://127.0.0.1:{port}" for port in ports)
        words = ["--name=one", f"--data-dir={data}", f"--initial-cluster=one={peer}"]
        words += [f"--initial-cluster-token={data}"]  # another folder is another cluster
        words += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
        words += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        words += ["--logger=zap", "--log-level=error"]
        super().__init__(BINARY, words, folder, label, stderr=stderr)
        self.host, self.port = "127.0.0.1", ports[0]

    def ready(self, bootstrap=False):
        del bootstrap
        until(lambda: "true" in (get(self.url("/health"), 1) or "") or not self.alive())
        return self.alive()
