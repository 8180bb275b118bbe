#!/usr/bin/env python3
"""Prints the vectors of block_hash_test.cc, computed with nothing of kvlane: hashlib and a CBOR
encoder of a few lines. Run it and compare (or paste) after changing a case."""
import hashlib
import struct


def cbor(value):
    def head(major, number):
        if number < 24:
            return struct.pack(">B", major << 5 | number)
        for code, form, limit in ((24, ">BB", 1 << 8), (25, ">BH", 1 << 16), (26, ">BI", 1 << 32)):
            if number < limit:
                return struct.pack(form, major << 5 | code, number)
        return struct.pack(">BQ", major << 5 | 27, number)

    if value is None:
        return b"\xf6"
    if isinstance(value, int):
        return head(0, value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return head(3, len(text)) + text
    return head(4, len(value)) + b"".join(cbor(item) for item in value)


def sglang(tokens, block, parent=None):
    """Full blocks only; the wide form as soon as one id of a block needs it."""
    out = []
    for at in range(0, len(tokens) - block + 1, block):
        page = tokens[at:at + block]
        message = parent or b""
        if any(token > 0xFFFFFFFF for token in page):
            message += b"\xff" + b"".join(token.to_bytes(8, "little") for token in page)
        else:
            message += b"".join(token.to_bytes(4, "little") for token in page)
        parent = hashlib.sha256(message).digest()
        out.append(parent)
    return out


def vllm(tokens, block, seed="vllm-none-hash"):
    parent = hashlib.sha256(cbor(seed)).digest()
    out = []
    for at in range(0, len(tokens) - block + 1, block):
        parent = hashlib.sha256(cbor((parent, tuple(tokens[at:at + block]), None))).digest()
        out.append(parent)
    return out


RAMP = list(range(1, 41))
# Every head size of CBOR, both sides of each limit, and real vocabulary sizes.
EDGES = [0, 23, 24, 255, 256, 65535, 65536, 128000, 151643, 2**32 - 1, 7, 24, 100, 1000, 10000, 1]
WIDE = [5, 6, 7, 8, 9, 2**32, 11, 12, 13, 14, 15, 2**63 - 1, 1, 2, 3, 4]

# The same case gives 3c922374… and 2e69fa8c… in vLLM itself.
SPREAD = [(i * 7919 + 13) % 152064 for i in range(300)]

for name, hashes in (
    ("vllm spread, 128", vllm(SPREAD, 128)),
    ("sglang ramp, 16", sglang(RAMP, 16)),
    ("sglang edges, 4", sglang(EDGES, 4)),
    ("sglang wide, 4", sglang(WIDE, 4)),
    ("vllm ramp, 16", vllm(RAMP, 16)),
    ("vllm edges, 4", vllm(EDGES, 4)),
    ("vllm wide, 4", vllm(WIDE, 4)),
    ("vllm ramp, 16, seed 0", vllm(RAMP, 16, "0")),
    ("vllm long, 300", vllm(list(range(300)), 300, "a seed longer than twenty-three bytes")),
    ("sglang long, 300", sglang(list(range(300)), 300)),
):
    print(f"// {name}")
    for value in hashes:
        print(f'    "{value.hex()}",')
print("// event ids of the last 'vllm ramp' and 'sglang ramp' hash")
print(int.from_bytes(vllm(RAMP, 16)[-1], "big") & (1 << 64) - 1)
print(int.from_bytes(sglang(RAMP, 16)[-1][:8], "big", signed=True))
