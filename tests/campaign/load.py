"""Requests at a router, all the time, each checked: right bytes or a typed error, once, in time."""

import http.client
import itertools
import json
import socket
import threading
import time

MASK = (1 << 64) - 1
DEADLINE = 40  # seconds of a request; the router's own limit is below


def mix64(value):
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


class KvPrompts:
    """For --kv-only workers: never the same prompt twice. Decode compares every byte with what the
    prompt stands for; that the answer is this prompt's is seen by its tokens, computed here."""

    TOKENS, BLOCK, OUTPUT = 600, 64, 3

    def __init__(self, seed):
        self.numbers = itertools.count(seed << 20)

    def next(self):
        number = next(self.numbers)
        blocks = (self.TOKENS + self.BLOCK - 1) // self.BLOCK
        ids = [number * blocks + i for i in range(blocks)]
        chain = 0
        for one in ids:
            chain = mix64(chain ^ mix64(one & MASK))
        tokens = [97 + mix64(chain ^ mix64(i)) % 26 for i in range(self.OUTPUT)]
        body = {
            "kv_only": {"tokens": self.TOKENS, "block_tokens": self.BLOCK, "hash_ids": ids},
            "sampling_params": {"max_new_tokens": self.OUTPUT},
        }
        return body, tokens

    @staticmethod
    def essence(answer):
        moved = answer["meta_info"]["kvlane"]
        if moved["pages_wrong"] or not moved["pages_verified"]:
            return f"pages: {moved}"
        return answer["output_ids"]


class TextPrompts:
    """For workers that compute: the answers, to the bit of every logit, are those of one worker
    that computes alone."""

    COUNT, OUTPUT = 32, 2

    def __init__(self, seed, alone):
        self.known = []
        for i in range(self.COUNT):
            body = {
                "text": f"{i} of {seed}: " + "what prefill has seen, decode remembers. ",
                "return_logits_digest": True,
                "sampling_params": {"max_new_tokens": self.OUTPUT, "temperature": 0},
            }
            status, text = call(alone.host, alone.port, "/generate", dict(body))
            assert status == 200, text
            self.known.append((body, self.essence(json.loads(text))))
        self.order = itertools.cycle(range(self.COUNT))

    def next(self):
        body, expected = self.known[next(self.order)]
        return dict(body), expected

    @staticmethod
    def essence(answer):
        return [answer["output_ids"], answer["meta_info"]["logits_digests"]]


def call(host, port, path, body=None, timeout=DEADLINE):
    """(status, text) of one call. A stream's events come as one text."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        text = None if body is None else json.dumps(body)
        connection.request("POST" if text else "GET", path, text)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Counts:
    """What came of requests."""

    def __init__(self):
        self.good = 0
        self.left = 0  # clients that did not wait for the answer
        self.refused = 0  # no router to talk to: only where the router is the one that was hurt
        self.typed = {}  # by type of error
        self.bad = []  # sentences

    def total(self):
        return self.good + self.left + self.refused + sum(self.typed.values()) + len(self.bad)


class Load:
    """`clients` threads, a request each at any time, from start() to stop()."""

    def __init__(self, router, prompts, clients, seed, leave_each=0):
        self.leave_each = leave_each  # one client in so many leaves at once; 0: none does
        self.router = router  # callable: (host, port), as the router may be another one by now
        self.prompts = prompts
        self.seed = seed
        self.counts = Counts()
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.stopping = threading.Event()
        self.moved = threading.Condition(self.lock)  # a request has ended
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    def stop(self):
        """Ends after the requests under way; False when one of them does not end."""
        self.stopping.set()
        deadline = time.monotonic() + DEADLINE + 10
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)

    def wait_good(self, more, patience):
        """Until `more` further requests have been answered well."""
        with self.lock:
            wanted = self.counts.good + more
            return self.moved.wait_for(lambda: self.counts.good >= wanted, patience)

    def _run(self):
        while not self.stopping.is_set():
            with self.lock:
                number = next(self.numbers)
                body, expected = self.prompts.next()
            body["rid"] = f"c{self.seed}-{number}"
            body["stream"] = number % 3 == 0
            begin = time.monotonic()
            if self.leave_each and number % self.leave_each == 0:
                kind, what = self._leave(body)
            else:
                kind, what = self._ask(body, expected)
            seconds = time.monotonic() - begin
            if seconds > DEADLINE:
                kind, what = "bad", f"ended after {seconds:.1f} s: {what}"
            with self.lock:
                counts = self.counts
                if kind == "good":
                    counts.good += 1
                elif kind == "left":
                    counts.left += 1
                elif kind == "refused":
                    counts.refused += 1
                elif kind == "typed":
                    counts.typed[what] = counts.typed.get(what, 0) + 1
                else:
                    counts.bad.append(f"{body['rid']}: {what}")
                self.moved.notify_all()
            if kind == "refused":
                self.stopping.wait(0.02)  # as a client would: not in a tight loop

    def _leave(self, body):
        text = json.dumps(body).encode()
        head = f"POST /generate HTTP/1.1\r\nHost: test\r\nContent-Length: {len(text)}\r\n\r\n"
        try:
            with socket.create_connection(self.router(), timeout=DEADLINE) as connection:
                connection.sendall(head.encode() + text)
        except OSError as problem:
            return "refused", repr(problem)
        return "left", ""

    def _ask(self, body, expected):
        host, port = self.router()
        try:
            status, text = call(host, port, "/generate", body)
        except TimeoutError:
            return "bad", "no end within its deadline"
        except (OSError, http.client.HTTPException) as problem:
            return "refused", repr(problem)
        try:
            return self._judge(status, text, body["stream"], expected)
        except (ValueError, KeyError, TypeError, IndexError) as problem:
            return "bad", f"{status} {text[:300]!r}: {problem!r}"

    def _judge(self, status, text, stream, expected):
        if status == 200 and stream:
            events = [part[6:] for part in text.split("\n\n") if part.startswith("data: ")]
            if not events or events.count("[DONE]") > 1:
                return "bad", f"a stream without one end: {text[-300:]!r}"
            last = json.loads(events[-2] if events[-1] == "[DONE]" else events[-1])
            if "error" not in last and events[-1] != "[DONE]":
                # The connection broke with the router in it.
                return "refused", "the stream broke off"
        else:
            last = json.loads(text)
        if "error" in last:
            error = last["error"]
            if not error["message"] or not isinstance(error["type"], str):
                return "bad", f"an error without type and message: {text[:300]!r}"
            kind = str(error["type"])
            return ("bad", text[:300]) if kind in ("corrupt", "internal") else ("typed", kind)
        if status != 200:
            return "bad", f"status {status} without an error: {text[:300]!r}"
        essence = self.prompts.essence(last)
        if essence != expected:
            return "bad", f"WRONG: {essence} instead of {expected}"
        return "good", ""
