"""The living programs: started with tight limits, asked whether they still answer, and weighed."""

import contextlib
import http.server
import os
import re
import select
import socket
import struct
import subprocess
import threading
import time

PATIENCE_S = 30
# Tight limits make an attack short; docs/limits.md has the defaults.
CONNECTIONS_MAX = 64
LIMITS = {
    "KVLANE_ROUTER_HEADER_TIMEOUT_SECS": "1",
    "KVLANE_ROUTER_IDLE_TIMEOUT_SECS": "2",
    "KVLANE_ROUTER_MAX_CONNECTIONS": str(CONNECTIONS_MAX),
    "KVLANE_ROUTER_MAX_PAYLOAD_SIZE": "16m",
    "KVLANE_ROUTER_MAX_BUFFERED_BYTES": "32m",
    "KVLANE_BOOTSTRAP_HEADER_TIMEOUT_SECS": "1",
    "KVLANE_BOOTSTRAP_IDLE_TIMEOUT_SECS": "2",
    "KVLANE_BOOTSTRAP_MAX_CONNECTIONS": str(CONNECTIONS_MAX),
    "KVLANE_WORKER_IDLE_TIMEOUT_S": "2",
    "KVLANE_WORKER_REQUEST_TIMEOUT_S": "1",
    "KVLANE_WORKER_CONNECTIONS_MAX": str(CONNECTIONS_MAX),
    "KVLANE_WORKER_BODY_BYTES_MAX": "16m",
    "KVLANE_WORKER_BUFFERED_BYTES_MAX": "32m",
    "KVLANE_STRANGERS_MAX": str(CONNECTIONS_MAX),
    "KVLANE_STRANGERS_PER_ADDRESS_MAX": str(CONNECTIONS_MAX),
    "KVLANE_CONNECT_TIMEOUT_MS": "1000",
    "KVLANE_TCP_CONNECT_TIMEOUT_MS": "1000",
}


def until(holds, what, patience_s=PATIENCE_S):
    """Asks again and again, with a pause that ends early for nobody: a poll on no descriptor."""
    end = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(what)
        select.select([], [], [], 0.02)


def connect(port, timeout_s=PATIENCE_S, receive_bytes=None):
    s = socket.socket()
    if receive_bytes:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    s.settimeout(timeout_s)
    s.connect(("127.0.0.1", port))
    return s


def read_to_end(s):
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := s.recv(65536):
            data += part
    return data


class Program:
    """One process of kvlane. `ask` is an honest client: True when it was served."""

    def __init__(self, name, words, ask, environment=None):
        self.name, self.ask = name, ask
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **LIMITS, **(environment or {})},
            text=True,
        )
        line = self.process.stdout.readline()
        found = re.search(r":(\d+)\s*$", line)
        if not found:
            raise AssertionError(f"{name} does not start: {line!r}")
        self.port = int(found.group(1))

    def status(self, key):
        with open(f"/proc/{self.process.pid}/status") as file:
            return int(re.search(rf"^{key}:\s+(\d+)", file.read(), re.M).group(1))

    def memory_kib(self):
        return self.status("VmRSS")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def listening_ports(self):
        inodes = set()
        for fd in os.listdir(f"/proc/{self.process.pid}/fd"):
            with contextlib.suppress(OSError):
                found = re.match(r"socket:\[(\d+)\]", os.readlink(f"/proc/{self.process.pid}/fd/{fd}"))
                if found:
                    inodes.add(found.group(1))
        ports = set()
        for table in ("tcp", "tcp6"):
            with open(f"/proc/net/{table}") as file:
                for row in file.readlines()[1:]:
                    words = row.split()
                    if words[3] == "0A" and words[9] in inodes:
                        ports.add(int(words[1].rsplit(":", 1)[1], 16))
        return ports

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def ask_http(path):
    def ask(port):
        with connect(port) as s:
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return read_to_end(s).startswith(b"HTTP/1.1 200")

    return ask


def hello():
    """A control hello as docs/wire/control.md has it, of an engine that has one tcp rail."""
    text = lambda words: struct.pack("<I", len(words)) + words
    rail = text(b"tcp") + text(b"any") + text(b"any")
    return (
        b"\x01"
        + struct.pack("<IH", 0x4C564B43, 1)
        + os.urandom(16)
        + struct.pack("<Q", 1)
        + text(b"127.0.0.1:9")
        + struct.pack("<iH", 1, 1)
        + rail
    )


def frame(message):
    return struct.pack("<I", len(message)) + message


def ask_engine(port):
    """Says hello and hears one."""
    with connect(port) as s:
        s.sendall(frame(hello()))
        data = b""
        with contextlib.suppress(ConnectionError):
            while len(data) < 5:
                part = s.recv(65536)
                if not part:
                    break
                data += part
        return len(data) >= 5 and data[4] == 1


class StubWorker:
    """What the router relays to: answers everything with a little JSON."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b'{"ok":1}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *words):
            pass

    def __init__(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self.Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def start(kvlane, name, stub):
    http_flags = ["--host", "127.0.0.1", "--port", "0"]
    if name == "router":
        words = [kvlane, "router", "--worker-urls", f"http://127.0.0.1:{stub.port}", *http_flags]
        return Program(name, words, ask_http("/health"))
    if name == "bootstrap":
        return Program(name, [kvlane, "bootstrap", *http_flags], ask_http("/health"))
    if name == "worker":
        words = [kvlane, "worker", "--model", "tiny", "--pages", "64", *http_flags]
        return Program(name, words, ask_http("/health"))
    return Program("engine", [kvlane, "bench", "--serve", "127.0.0.1:0"], ask_engine)
