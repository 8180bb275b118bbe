#!/usr/bin/env python3
"""How long does Python need to post blocks? 10,000 of 4 KiB in one call, to a peer in another
process, and what a plain loop over them in Python would take. To reach: 1 ms until the call returns.

    PYTHONPATH=kvcache/python KVLANE_LIBRARY=… bench/python_post.py [BLOCKS] [ROUNDS]
"""
import array
import json
import multiprocessing
import random
import sys
import time

from kvlane import Access, Buffer, Code, Engine, Kind

BLOCK = 4096


def serve(connection, blocks):
    with Engine({"listen": "127.0.0.1:0"}) as engine:
        memory = engine.register(Buffer(blocks * BLOCK), Access.REMOTE_ALL)
        connection.send((engine.address, memory.handle))
        while not connection.poll(0):
            engine.poll(timeout=0.05)


def main():
    blocks = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, blocks))
    child.start()
    address, handle = ours.recv()
    with Engine({"listen": "127.0.0.1:0"}) as engine:
        local = engine.register(Buffer(blocks * BLOCK))
        peer = engine.connect(address)
        order = list(range(blocks))
        random.Random(1).shuffle(order)
        here = array.array("Q", [i * BLOCK for i in order])
        random.Random(2).shuffle(order)
        there = array.array("Q", [i * BLOCK for i in order])
        post, whole = [], []
        for _ in range(rounds):
            begin = time.perf_counter()
            engine.write(peer, local, handle, here, there, block_bytes=BLOCK)
            post.append(time.perf_counter() - begin)
            ends = [e for e in engine.poll(timeout=20) if e.kind == Kind.TRANSFER]
            while not ends:
                ends = [e for e in engine.poll(timeout=20) if e.kind == Kind.TRANSFER]
            whole.append(time.perf_counter() - begin)
            assert ends[0].code == Code.OK, ends
        begin = time.perf_counter()
        for a, b in zip(here, there):
            (a, b, BLOCK)
        loop = time.perf_counter() - begin
    ours.send(None)
    child.join(10)
    post.sort()
    whole.sort()
    print(
        json.dumps(
            {
                "blocks": blocks,
                "post_p50_ms": round(1e3 * post[len(post) // 2], 3),
                "post_least_ms": round(1e3 * post[0], 3),
                "whole_p50_ms": round(1e3 * whole[len(whole) // 2], 3),
                "gb_per_s": round(blocks * BLOCK / whole[len(whole) // 2] / 1e9, 2),
                "empty_python_loop_ms": round(1e3 * loop, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
