"""vLLM's connector without vLLM: its methods against the recorded ones, and prefill and decode ranks
whose KV caches are arrays."""

import inspect
import json
import select
import sys
import time
import unittest
from pathlib import Path
from types import SimpleNamespace

try:
    import numpy
except ImportError:
    numpy = None

sys.path.insert(0, str(Path(__file__).parent))
import fake_vllm  # noqa: E402

fake_vllm.install()
from fake_vllm import KVConnectorRole, RequestStatus  # noqa: E402

from kvlane import vllm as connectors  # noqa: E402
from kvlane._plan import sources_of  # noqa: E402

PATIENCE = 20.0
LAYERS, BLOCKS, TOKENS, WIDTH = 3, 16, 4, 8


class Signatures(unittest.TestCase):
    def test_methods_are_as_recorded(self):
        recorded = json.loads((Path(__file__).parent / "vllm_signatures.json").read_text())
        for cls in (connectors.KvlaneConnector, connectors.NixlConnector):
            for name, row in recorded.items():
                own = next((vars(c)[name] for c in cls.__mro__[:-3] if name in vars(c)), None)
                if own is None:
                    self.assertFalse(row["abstract"], f"{name} is missing")
                    continue
                parameters = list(inspect.signature(getattr(own, "__func__", own)).parameters.values())
                given = [p for p in parameters[1:] if p.kind.name != "VAR_KEYWORD"]
                asked = [p for p in row["parameters"] if p[1] != "VAR_KEYWORD"]
                self.assertEqual([p.name for p in given], [p[0] for p in asked], name)
        for name in vars(connectors.KvlaneConnector):
            if not name.startswith("_"):
                self.assertIn(name, recorded, "vLLM calls no such method")


class Shares(unittest.TestCase):
    def test_every_head_comes_from_its_rank_once(self):
        for prefill, decode in ((1, 1), (2, 1), (1, 2), (4, 2), (2, 8), (8, 2)):
            total = 16
            here, there = total // decode, total // prefill
            readers = {}
            for rank in range(decode):
                sources = sources_of(rank, decode, prefill, here)
                got = []
                for source, theirs, ours in zip(sources.ranks, sources.theirs, sources.ours):
                    for head in range(sources.heads):
                        got.append((ours + head, source * there + theirs + head))
                    readers.setdefault(source, []).append(sources.readers)
                self.assertEqual(sorted(got), [(h, rank * here + h) for h in range(here)])
            for source, counts in readers.items():
                self.assertEqual(set(counts), {len(counts)}, f"{prefill} to {decode}: rank {source}")
        with self.assertRaises(ValueError):
            sources_of(0, 2, 3, 8)
        with self.assertRaises(ValueError):
            sources_of(0, 1, 0, 8)


def free_ports(count):
    """A row of ports that were free a moment ago."""
    import random
    import socket

    while True:
        base = random.randrange(20000, 60000)
        sockets = []
        try:
            for i in range(count):
                one = socket.socket()
                sockets.append(one)
                one.bind(("127.0.0.1", base + i))
            return base
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()


class Side:
    """A scheduler and the ranks of one engine, stepped by hand."""

    def __init__(self, tp, heads, fill, pp=1, mla=False, **extra):
        self.tp = tp
        extra = {"port": free_ports(tp), "settings": {"peer_timeout_ms": 8000, "connect_timeout_ms": 8000}, **extra}
        config = SimpleNamespace(
            kv_transfer_config=SimpleNamespace(
                kv_connector_extra_config=extra, engine_id=f"engine-{id(self)}"
            ),
            parallel_config=SimpleNamespace(tensor_parallel_size=tp, pipeline_parallel_size=pp),
            model_config=SimpleNamespace(use_mla=mla),
        )
        groups = SimpleNamespace(kv_cache_groups=[1], transfer_group_ids=(0,))
        self.scheduler = connectors.KvlaneConnector(config, KVConnectorRole.SCHEDULER, groups)
        self.workers, self.caches = [], []
        for rank in range(tp):
            fake_vllm.rank, fake_vllm.size = rank, tp
            self.workers.append(connectors.KvlaneConnector(config, KVConnectorRole.WORKER, groups))
            caches = {}
            for layer in range(LAYERS):
                shape = (BLOCKS, heads // tp, TOKENS, WIDTH)
                caches[f"layer.{layer}"] = numpy.zeros(shape, dtype=numpy.uint16)
                if fill:
                    for block in range(BLOCKS):
                        for head in range(heads // tp):
                            value = layer * 4096 + block * 64 + rank * (heads // tp) + head + 1
                            caches[f"layer.{layer}"][block, head] = value
            self.caches.append(caches)
            self.workers[-1].register_kv_caches(caches)

    def step(self):
        """What every rank says after one step."""
        metadata = self.scheduler.build_connector_meta(None)
        results = []
        for worker in self.workers:
            worker.bind_connector_metadata(metadata)
            worker.start_load_kv(None)
            result = worker.get_transfer_results(set())
            results.append((result, worker.get_block_ids_with_load_errors()))
        return results

    def close(self):
        for worker in self.workers:
            worker.shutdown()


def request(name, params, status=RequestStatus.FINISHED_LENGTH_CAPPED, tokens=40):
    return SimpleNamespace(
        request_id=name,
        kv_transfer_params=params,
        status=status,
        num_prompt_tokens=tokens,
        num_computed_tokens=tokens,
    )


def prefilled(side, name, blocks):
    held, params = side.scheduler.request_finished(
        request(name, {"do_remote_decode": True}), list(blocks)
    )
    assert held
    return params


def begin_load(side, name, params, blocks):
    wanted = request(name, params)
    count, later = side.scheduler.get_num_new_matched_tokens(wanted, 0)
    assert (count, later) == (40, True)
    allocated = SimpleNamespace(get_unhashed_block_ids_all_groups=lambda: (list(blocks),))
    side.scheduler.update_state_after_alloc(wanted, allocated, count)


def until(steps, done):
    """Steps all sides until `done(results)` of one of them; the results so far, by side."""
    seen = [([], []) for _ in steps]  # (finished, failed) by side
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for side, (good, bad) in zip(steps, seen):
            for rank, (result, errors) in enumerate(side.step()):
                good += [("sent", rank, one) for one in result.finished_sending]
                good += [("received", rank, one) for one in result.finished_recving]
                bad += [(rank, one, tuple(sorted(errors))) for one in result.failed_recving]
        if done(seen):
            return seen
        select.select([], [], [], 0.005)  # what a step of an engine takes
    raise AssertionError(f"not in time: {seen}")


@unittest.skipIf(numpy is None, "numpy is not installed")
class Loads(unittest.TestCase):
    def setUp(self):
        self.sides = []

    def tearDown(self):
        for side in self.sides:
            side.close()

    def side(self, *arguments, **extra):
        self.sides.append(Side(*arguments, **extra))
        return self.sides[-1]

    def check(self, decode, heads, ours, theirs):
        for rank, caches in enumerate(decode.caches):
            for layer in range(LAYERS):
                cache = caches[f"layer.{layer}"]
                for mine, block in zip(ours, theirs):
                    for head in range(heads // decode.tp):
                        whole = rank * (heads // decode.tp) + head
                        expected = layer * 4096 + block * 64 + whole + 1
                        self.assertTrue((cache[mine, head] == expected).all(), (rank, layer, block))
                rest = [b for b in range(BLOCKS) if b not in ours]
                self.assertFalse(cache[rest].any(), "a block that nobody asked for was written")

    def test_blocks_come_whatever_the_tensor_parallelism(self):
        for prefill_tp, decode_tp in ((1, 1), (2, 1), (1, 2), (2, 2)):
            with self.subTest(prefill=prefill_tp, decode=decode_tp):
                prefill = self.side(prefill_tp, 4, True)
                decode = self.side(decode_tp, 4, False)
                params = prefilled(prefill, "p1", [3, 5, 9, 1])
                json.dumps(params)  # it travels as JSON
                begin_load(decode, "d1", params, [7, 2, 0, 14])
                seen = until(
                    [prefill, decode],
                    lambda seen: len(seen[0][0]) == prefill_tp and len(seen[1][0]) == decode_tp,
                )
                self.assertEqual(seen[1][1], [])
                self.assertEqual({one[2] for one in seen[0][0]}, {"p1"})
                self.check(decode, 4, [7, 2, 0, 14], [3, 5, 9, 1])

    def test_the_beginning_may_be_here_already(self):
        prefill, decode = self.side(1, 2, True), self.side(1, 2, False)
        begin_load(decode, "d1", prefilled(prefill, "p1", [3, 5, 9]), [8])
        until([prefill, decode], lambda seen: seen[0][0] and seen[1][0])
        self.check(decode, 2, [8], [9])

    def test_nothing_to_load_lets_prefill_go(self):
        prefill, decode = self.side(1, 2, True), self.side(1, 2, False)
        wanted = request("d1", prefilled(prefill, "p1", [3]))
        decode.scheduler.update_state_after_alloc(wanted, None, 0)
        seen = until([prefill, decode], lambda seen: seen[0][0])
        self.assertEqual(seen, [([("sent", 0, "p1")], []), ([], [])])

    def test_wrong_blocks_are_a_failed_load(self):
        prefill, decode = self.side(1, 2, True), self.side(1, 2, False)
        for blocks in ([3], [99, 98], [-1, 2]):
            params = prefilled(prefill, f"p{blocks}", [3, 5])
            params["remote_block_ids"] = [blocks]
            begin_load(decode, f"d{blocks}", params, [7, 2])
            seen = until([prefill, decode], lambda seen: seen[1][1])
            self.assertEqual(seen[1][1], [(0, f"d{blocks}", (2, 7))])
            self.assertIn(("received", 0, f"d{blocks}"), seen[1][0], "it is over all the same")
        self.check(decode, 2, [], [])

    def test_a_model_of_another_shape_is_a_failed_load(self):
        prefill, decode = self.side(1, 2, True), self.side(1, 4, False)
        begin_load(decode, "d1", prefilled(prefill, "p1", [3]), [7])
        until([prefill, decode], lambda seen: seen[1][1])

    def test_prefill_that_is_gone_is_a_failed_load(self):
        prefill, decode = self.side(1, 2, True), self.side(1, 2, False, transfer_s=2)
        begin_load(decode, "d0", prefilled(prefill, "p0", [1]), [1])
        until([prefill, decode], lambda seen: seen[1][0])
        params = prefilled(prefill, "p1", [3])
        prefill.close()
        begin_load(decode, "d1", params, [7])
        until([decode], lambda seen: seen[0][1])

    def test_a_lease_that_nobody_uses_ends(self):
        prefill, decode = self.side(1, 2, True, lease_s=0.5, transfer_s=0.2), self.side(1, 2, False)
        params = prefilled(prefill, "p1", [3])
        until([prefill], lambda seen: ("sent", 0, "p1") in seen[0][0])
        begin_load(decode, "d1", params, [7])
        seen = until([prefill, decode], lambda seen: seen[1][1])
        self.assertEqual(seen[1][1], [(0, "d1", (7,))], "its blocks are somebody else's by now")

    def test_parameters_that_lack_something_promise_no_load(self):
        decode = self.side(1, 2, False)
        whole = {"remote_block_ids": [[1]], "remote_request_id": "p1", "remote_host": "127.0.0.1",
                 "remote_port": 1, "tp_size": 1}
        for name in whole:
            params = {"do_remote_prefill": True, **whole, name: None}
            wanted = request("d1", params)
            # It would wait for ever for a load that was promised and never begins.
            self.assertEqual(decode.scheduler.get_num_new_matched_tokens(wanted, 0), (0, False))
            decode.scheduler.update_state_after_alloc(wanted, None, 0)
            self.assertEqual(decode.scheduler.request_finished(wanted, [1]), (False, None))
        self.assertEqual(decode.scheduler.build_connector_meta(None).loads, [])

    def test_a_decode_that_ends_before_it_has_blocks_lets_prefill_go(self):
        prefill, decode = self.side(1, 2, True), self.side(1, 2, False)
        params = prefilled(prefill, "p1", [3])
        ended = request("d1", params, RequestStatus.FINISHED_ABORTED)
        self.assertEqual(decode.scheduler.request_finished(ended, []), (False, None))
        seen = until([prefill, decode], lambda seen: seen[0][0])
        self.assertEqual(seen, [([("sent", 0, "p1")], []), ([], [])])

    def test_a_reader_that_gave_up_holds_nothing(self):
        prefill = self.side(1, 2, True)
        decode = self.side(1, 2, False, transfer_s=1)
        begin_load(decode, "d0", prefilled(prefill, "p0", [1]), [1])
        until([prefill, decode], lambda seen: seen[1][0])
        # Its lease comes only after decode has given up: prefill's worker knows nothing of it yet.
        params = prefilled(prefill, "p1", [3])
        begin_load(decode, "d1", params, [7])
        seen = until([decode], lambda seen: seen[0][1])
        self.assertEqual(seen[0][1], [(0, "d1", (7,))])
        until([prefill], lambda seen: ("sent", 0, "p1") in seen[0][0])
        worker = prefill.workers[0]._worker
        self.assertEqual((worker._asking, worker._pinned), ({}, {}))

    def test_block_ids_that_are_none_hold_nothing(self):
        prefill, decode = self.side(1, 2, True), self.side(1, 2, False)
        for number, blocks in enumerate(([], [["a"]], [None], {}, [[1 << 70]])):
            params = prefilled(prefill, f"p{number}", [3])
            params["remote_block_ids"] = blocks
            begin_load(decode, f"d{number}", params, [7])
            seen = until([prefill, decode], lambda seen: seen[0][0] and seen[1][1])
            self.assertEqual(seen[1][1], [(0, f"d{number}", (7,))])

    def test_models_that_are_not_moved_are_refused(self):
        for extra in ({"mla": True}, {"pp": 2}):
            with self.assertRaisesRegex(ValueError, "does not move"):
                Side(1, 2, False, **extra)

    def test_an_aborted_prefill_holds_nothing(self):
        prefill = self.side(1, 2, True)
        ended = request("p1", {"do_remote_decode": True}, RequestStatus.FINISHED_ABORTED)
        self.assertEqual(prefill.scheduler.request_finished(ended, [1]), (False, None))
        self.assertEqual(prefill.scheduler.request_finished(request("p2", None), [1]), (False, None))

    def test_options_are_checked(self):
        for extra in ({"prot": 5}, {"lease_s": 1, "transfer_s": 2}):
            with self.assertRaises(ValueError):
                Side(1, 2, False, **extra)

    def test_messages_that_make_no_sense_change_nothing(self):
        prefill, decode = self.side(1, 2, True), self.side(1, 2, False)
        begin_load(decode, "d0", prefilled(prefill, "p0", [1]), [1])
        until([prefill, decode], lambda seen: seen[1][0])
        worker = decode.workers[0]._worker
        peer = next(iter(worker._by_address.values()))
        with self.assertLogs("vllm.kvlane", "WARNING") as logged:
            for bad in (b"", b"\xff", b"[]", b"{}", b'{"v":9}', b'{"v":1,"op":"x"}',
                        b'{"v":1,"op":"here","caches":{}}', b'{"v":1,"op":"done"}'):
                worker.engine.send(peer, bad)
            begin_load(decode, "d1", prefilled(prefill, "p1", [3]), [7])
            until([prefill, decode], lambda seen: seen[1][0])
        self.assertGreaterEqual(len(logged.output), 8)


if __name__ == "__main__":
    unittest.main()
