"""The Python package over a real engine: what moves, what is refused, what is not copied."""

import array
import asyncio
import gc
import threading
import time
import unittest
import weakref

import kvlane
from kvlane import Access, Buffer, Code, Engine, Error, Kind
from kvlane._buffers import view_of

try:
    import numpy
except ImportError:
    numpy = None

PATIENCE = 20.0
LOOPBACK = {"listen": "127.0.0.1:0"}


def await_kind(engine, kind):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for event in engine.poll(timeout=0.5):
            if event.kind == kind:
                return event
    raise AssertionError(f"no {kind.name}")


class Pair:
    """Two engines of one process and memory on both sides."""

    def __init__(self, size=1 << 20, ours=None, theirs=None, **settings):
        self.prefill = Engine({**LOOPBACK, **settings}, environment=False)
        self.decode = Engine({**LOOPBACK, **settings}, environment=False)
        self.ours = bytearray(size) if ours is None else ours
        self.theirs = bytearray(size) if theirs is None else theirs
        self.local = self.prefill.register(self.ours, Access.REMOTE_ALL)
        self.remote = self.decode.register(self.theirs, Access.REMOTE_ALL)
        self.peer = self.prefill.connect(self.decode.address)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.prefill.close()
        self.decode.close()


class Transfers(unittest.TestCase):
    def test_blocks_move_both_ways_over_tcp_and_shm(self):
        for transport in ("tcp", "shm"):
            with self.subTest(transport), Pair(require=transport) as pair:
                blocks, size = 64, 4096
                for i in range(blocks):
                    pair.ours[i * size : (i + 1) * size] = bytes([i + 1]) * size
                local = array.array("Q", [i * size for i in range(blocks)])
                remote = array.array("Q", [(blocks - 1 - i) * size for i in range(blocks)])
                transfer = pair.prefill.write(
                    pair.peer, pair.local, pair.remote.handle, local, remote,
                    block_bytes=size, note=b"done", user=42,
                )
                note = await_kind(pair.decode, Kind.NOTE)
                self.assertEqual(note.data, b"done")
                for i in range(blocks):
                    at = (blocks - 1 - i) * size
                    self.assertEqual(pair.theirs[at : at + size], bytes([i + 1]) * size)
                event = await_kind(pair.prefill, Kind.TRANSFER)
                self.assertEqual((event.code, event.user, event.transfer, event.bytes),
                                 (Code.OK, 42, transfer, blocks * size))
                pair.theirs[0:10] = b"0123456789"
                pair.prefill.read(pair.peer, [pair.local], [pair.remote], [500, 600], [0, 5],
                                  sizes=[5, 5], local_index=[0, 0], remote_index=[0, 0])
                self.assertEqual(await_kind(pair.prefill, Kind.TRANSFER).code, Code.OK)
                self.assertEqual(bytes(pair.ours[500:505] + pair.ours[600:605]), b"0123456789")
                info = pair.prefill.describe(pair.peer)
                self.assertTrue(info.up)
                self.assertEqual((info.transport, info.id), (transport, pair.decode.id))
                pair.prefill.send(pair.peer, b"hello\0there")
                self.assertEqual(await_kind(pair.decode, Kind.MESSAGE).data, b"hello\0there")
                self.assertIn("kvlane_transfers_ended_total", pair.prefill.metrics())

    def test_a_buffer_is_shared_and_outlives_its_name(self):
        ours, theirs = Buffer(1 << 20), Buffer(1 << 20)
        with Pair(ours=ours, theirs=theirs, require="shm") as pair:
            ours.memory[:4] = b"abcd"
            pair.prefill.write(pair.peer, pair.local, pair.remote, [0], [100], block_bytes=4)
            self.assertEqual(await_kind(pair.prefill, Kind.TRANSFER).code, Code.OK)
            look = theirs.memory
            del theirs, pair.theirs
            gc.collect()
            self.assertEqual(bytes(look[100:104]), b"abcd")

    @unittest.skipIf(numpy is None, "numpy is not installed")
    def test_numpy_arrays_are_taken_where_they_are(self):
        ours = numpy.arange(1 << 17, dtype=numpy.uint64)
        theirs = numpy.zeros((2, 1 << 16), dtype=numpy.uint64)
        with Pair(ours=ours, theirs=theirs) as pair:
            offsets = numpy.arange(0, 1 << 20, 8192, dtype=numpy.uint64)
            pair.prefill.write(pair.peer, pair.local, pair.remote, offsets, offsets[::-1].copy(),
                               block_bytes=8192)
            self.assertEqual(await_kind(pair.prefill, Kind.TRANSFER).code, Code.OK)
            got = theirs.reshape(-1, 1024)[::-1].reshape(-1)
            self.assertTrue((got == ours).all())
        for wrong in (numpy.zeros((8, 8))[:, :4], numpy.frombuffer(b"read only", dtype="u1")):
            with self.assertRaises(ValueError):
                Engine(LOOPBACK).register(wrong)

    @unittest.skipIf(numpy is None, "numpy is not installed")
    def test_dlpack_is_taken_where_it_is(self):
        class Tensor:
            def __init__(self, array):
                self.array = array

            def __dlpack__(self):
                return self.array.__dlpack__()

        array = numpy.arange(1000, dtype=numpy.float32)
        view = view_of(Tensor(array))
        self.assertEqual((view.address, view.bytes, view.cuda), (array.ctypes.data, 4000, False))
        with self.assertRaises(ValueError):
            view_of(Tensor(array.reshape(10, 100)[:, :50]))

    def test_registered_memory_stays_whoever_forgets_it(self):
        class Gone(bytearray):
            pass

        with Engine(LOOPBACK) as engine:
            memory = Gone(4096)
            watch = weakref.ref(memory)
            registered = engine.register(memory, Access.REMOTE_WRITE)
            handle = registered.handle
            del memory, registered
            gc.collect()
            self.assertIsNotNone(watch(), f"{handle} is registered, and its memory was freed")
            again = engine.register(watch(), Access.LOCAL)
            again.deregister()
            self.assertIsNotNone(watch())
        gc.collect()
        self.assertIsNone(watch(), "the engine is closed")

    def test_close_waits_for_a_poll_of_another_thread(self):
        engine = Engine(LOOPBACK)
        thread = threading.Thread(target=lambda: engine.poll(timeout=60))
        thread.start()
        engine.close()
        thread.join(PATIENCE)
        self.assertFalse(thread.is_alive())

    def test_events_come_to_asyncio(self):
        async def move(pair):
            async def until(engine, kind):
                while True:
                    for event in await engine.events():
                        if event.kind == kind:
                            return event

            pair.prefill.write(pair.peer, pair.local, pair.remote, [0], [0], block_bytes=4096,
                               note=b"x")
            both = asyncio.gather(until(pair.prefill, Kind.TRANSFER), until(pair.decode, Kind.NOTE))
            return await asyncio.wait_for(both, PATIENCE)

        with Pair() as pair:
            done, note = asyncio.run(move(pair))
            self.assertEqual((done.code, note.data), (Code.OK, b"x"))

    def test_a_wait_lets_other_threads_run(self):
        with Engine(LOOPBACK) as engine:
            ran, over = set(), threading.Event()

            def run():
                while not over.is_set():
                    ran.add(int(time.monotonic() * 100))

            thread = threading.Thread(target=run)
            thread.start()
            begin = time.monotonic()
            self.assertEqual(engine.poll(timeout=0.4), [])
            end = time.monotonic()
            over.set()
            thread.join()
            self.assertGreaterEqual(end - begin, 0.39)
            # Hundredths of a second well inside of the wait in which somebody else ran.
            inside = [at for at in ran if begin + 0.05 < at / 100 < end - 0.05]
            self.assertGreater(len(inside), 2, "nobody else ran meanwhile")


class Refusals(unittest.TestCase):
    def test_errors_have_a_code_and_a_sentence(self):
        with self.assertRaises(Error) as caught:
            Engine({"no.such": 1})
        self.assertEqual(caught.exception.code, Code.INVALID_ARGUMENT)
        self.assertIn("no.such", str(caught.exception))
        with Pair() as pair:
            for wrong in (
                lambda: pair.prefill.connect("nowhere"),
                lambda: pair.prefill.write(pair.peer, pair.local, pair.remote, [], [], block_bytes=1),
                lambda: pair.prefill.write(pair.peer, pair.local, pair.remote, [0], [0]),
                lambda: pair.prefill.write(pair.peer, 12345, pair.remote, [0], [0], block_bytes=1),
                lambda: pair.prefill.write(pair.peer, pair.local, pair.remote, [0], [0],
                                           block_bytes=1, note=b"x" * 25),
            ):
                with self.assertRaises(Error) as caught:
                    wrong()
                self.assertEqual(caught.exception.code, Code.INVALID_ARGUMENT)
            with self.assertRaises(ValueError):
                pair.prefill.write(pair.peer, pair.local, pair.remote, [0, 1], [0], block_bytes=1)
            with self.assertRaises(ValueError):
                pair.prefill.write(pair.peer, pair.local, pair.remote, [0], [0], sizes=[1, 2])
            with self.assertRaises(OverflowError):
                pair.prefill.write(pair.peer, pair.local, pair.remote, [-1], [0], block_bytes=1)
            for wrong in (b"read only", memoryview(b"read only"), "text", 5, None):
                with self.assertRaises((TypeError, ValueError)):
                    pair.prefill.register(wrong)
            pair.prefill.write(pair.peer, pair.local, pair.remote, [0], [1 << 40], block_bytes=1)
            event = await_kind(pair.prefill, Kind.TRANSFER)
            self.assertEqual(event.code, Code.INVALID_ARGUMENT)

    def test_what_is_closed_says_so(self):
        engine = Engine(LOOPBACK)
        engine.close()
        engine.close()
        with self.assertRaises(ValueError):
            engine.address
        buffer = Buffer(4096)
        buffer.close()
        with self.assertRaises(ValueError):
            buffer.memory

    def test_a_lost_peer_ends_its_transfers(self):
        with Pair() as pair:
            await_kind(pair.prefill, Kind.PEER_UP)
            pair.decode.close()
            self.assertEqual(await_kind(pair.prefill, Kind.PEER_DOWN).peer, pair.peer)
            pair.local.deregister()
            with self.assertRaises(Error):
                pair.local.deregister()


class Package(unittest.TestCase):
    def test_every_name_has_a_docstring_or_fields(self):
        for name in kvlane.__all__:
            self.assertTrue(getattr(kvlane, name).__doc__, name)
        self.assertEqual(kvlane.__version__, kvlane.version())


if __name__ == "__main__":
    unittest.main()
