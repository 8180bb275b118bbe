"""The attacks. Each takes a port, is a generator and yields once everything hostile is in place: the
caller then asks as an honest client. Afterwards it says how the hostile connections ended."""

import contextlib
import os
import select
import socket
import time

from programs import CONNECTIONS_MAX, PATIENCE_S, connect, frame, hello

TLS_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(160)


def send(s, data):
    """As much as the other side takes; False when it has closed."""
    try:
        s.sendall(data)
        return True
    except (ConnectionError, TimeoutError):
        return False


def ended(sockets, trickle=None, patience_s=PATIENCE_S):
    """How many of the connections the program has ended. Meanwhile each says a little more, where
    `trickle` is given. Their number is the goal; the deadline is for a program that never does."""
    left = set(sockets)
    end = time.monotonic() + patience_s
    while left and time.monotonic() < end:
        ready, _, _ = select.select(list(left), [], [], 0.1)
        for s in ready:
            with contextlib.suppress(BlockingIOError):
                try:
                    if s.recv(1 << 20) == b"":
                        left.discard(s)
                except ConnectionError:
                    left.discard(s)
        if trickle:
            for s in list(left):
                try:
                    s.send(trickle, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    pass
                except ConnectionError:
                    left.discard(s)
    return len(sockets) - len(left)


def held(port, count, first=b"", trickle=None, after=None, receive_bytes=None):
    """`count` connections that say `first`, then stay; ended by the program."""
    sockets = []
    try:
        for _ in range(count):
            s = connect(port, receive_bytes=receive_bytes)
            sockets.append(s)
            send(s, first)
            if after:
                after(s)
            s.setblocking(False)
        yield
        got = ended(sockets, trickle)
        assert got == count, f"{count - got} of {count} hostile connections were never ended"
        yield f"{got} ended"
    finally:
        for s in sockets:
            s.close()


def silent(port):
    """More connections than are allowed, and not a byte."""
    return held(port, CONNECTIONS_MAX * 2)


def connect_flood(port):
    """Two thousand connections in a row, each left at once."""
    for i in range(2000):
        s = connect(port)
        if i % 2:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset
        s.close()
    yield
    yield "2000 made"


def garbage(port):
    return held(port, 16, os.urandom(4096))


def tls(port):
    return held(port, 16, TLS_HELLO)


def half_open(first):
    def attack(port):
        """Says a part, then that nothing more will come."""
        return held(port, 32, first, after=lambda s: s.shutdown(socket.SHUT_WR))

    return attack


def truncated(first):
    def attack(port):
        """A part of a message, then gone."""
        for _ in range(200):
            with connect(port) as s:
                send(s, first)
        yield
        yield "200 made"

    return attack


POST = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def slow_head(port):
    return held(port, 40, b"GET /health HTTP/1.1\r\nX-Slow: ", trickle=b"a")


def slow_body(port):
    return held(port, 40, POST + b"Content-Length: 60000\r\n\r\n{", trickle=b" ")


def answered(port, request, wanted):
    """One hostile request that must be refused with one of the answers."""
    with connect(port) as s:
        send(s, request)
        with contextlib.suppress(OSError):  # reset already
            s.shutdown(socket.SHUT_WR)
        data = b""
        with contextlib.suppress(ConnectionError, OSError):
            while part := s.recv(65536):
                data += part
        status = data[9:12].decode("ascii", "replace")
        # A refusal may be lost to a reset when the client was still sending.
        assert status in wanted or (data == b"" and "reset" in wanted), f"answered {status!r}"
        yield
        yield f"answered {status or 'by a reset'}"


def big_head(port):
    return answered(
        port, b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", {"431", "400", "413", "reset"}
    )


def big_length(port):
    return answered(port, POST + b"Content-Length: 999999999999\r\n\r\n{", {"413", "reset"})


def bad_chunks(port):
    request = POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nx"
    return answered(port, request, {"400", "413"})


def two_lengths(port):
    request = POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}"
    return answered(port, request, {"400"})


def many_bodies(port):
    """Bodies that are allowed one by one and too much together, none of them finished."""
    body = b"{" + b" " * (12 << 20)
    head = POST + b"Content-Length: %d\r\n\r\n" % (16 << 20)
    sockets = []
    try:
        for _ in range(8):
            s = connect(port)
            sockets.append(s)
            send(s, head)
            s.setblocking(False)
            for at in range(0, len(body), 1 << 20):
                if not select.select([], [s], [], 2)[1]:
                    break
                try:
                    s.send(body[at : at + (1 << 20)])
                except (ConnectionError, BlockingIOError):
                    break
        yield
        for s in sockets:  # the slow rest has a deadline by its length: leave instead
            s.close()
        yield "refused beyond the bound"
    finally:
        for s in sockets:
            s.close()


def pipelined(port):
    """Three thousand requests at once on one connection, the answers read afterwards."""
    with connect(port) as s:
        request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3000
        s.setblocking(False)
        sent = got = 0
        end = time.monotonic() + PATIENCE_S
        open_ = True
        yield
        while open_ and got < 3000 and time.monotonic() < end:
            ready, writable, _ = select.select([s], [s] if sent < len(request) else [], [], 1)
            try:
                if writable:
                    sent += s.send(request[sent : sent + 65536])
                if ready:
                    data = s.recv(1 << 20)
                    got += data.count(b"HTTP/1.1 ")
                    open_ = data != b""
            except ConnectionError:
                open_ = False
        assert got == 3000 or not open_, f"only {got} of 3000 answers"
        yield f"{got} answers"


def never_reads(port):
    """Asks for large answers again and again and reads none: ended by the deadline for writing."""
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 200
    sockets = []
    try:
        for _ in range(8):
            s = connect(port, receive_bytes=4096)
            s.setblocking(False)
            sockets.append(s)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                s.send(request)
        yield
        # What was sent and not read hides the end from here: the descriptors over there show it.
        yield f"{len(sockets)} made"
    finally:
        for s in sockets:
            s.close()


HTTP = {
    "silent": silent,
    "connect flood": connect_flood,
    "slow head": slow_head,
    "slow body": slow_body,
    "half-open": half_open(b"GET /heal"),
    "truncated": truncated(POST + b"Content-Length: 500\r\n\r\n{"),
    "head too large": big_head,
    "body too large": big_length,
    "many large bodies": many_bodies,
    "bad chunks": bad_chunks,
    "two lengths": two_lengths,
    "pipelined": pipelined,
    "never reads": never_reads,
    "TLS": tls,
    "garbage": garbage,
}
CONTROL = {
    "silent": silent,
    "connect flood": connect_flood,
    "slow hello": lambda port: held(port, 40, b"\x80\0\0\0\x01", trickle=b"a"),
    "half-open": half_open(frame(hello())[:20]),
    "truncated": truncated(frame(hello())[:20]),
    "length too large": lambda port: held(port, 8, b"\xff\xff\xff\x7f" + bytes(1000)),
    "much before hello": lambda port: held(port, 8, b"\0\0\xff\0" + bytes(1 << 20)),
    "message before hello": lambda port: held(port, 8, frame(b"\x0a" + bytes(1000))),
    "hello, then garbage": lambda port: held(port, 8, frame(hello()) + frame(os.urandom(64)) * 50),
    "TLS": tls,
    "garbage": garbage,
}
LANES = {
    "silent": silent,
    "connect flood": connect_flood,
    "slow greeting": lambda port: held(port, 40, b"GKVT", trickle=b"a"),
    "half-open": half_open(b"GKVT\1\0"),
    "truncated": truncated(b"GKVT\1\0"),
    "TLS": tls,
    "garbage": garbage,
}
