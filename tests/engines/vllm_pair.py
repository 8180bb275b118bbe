#!/usr/bin/env python3
"""A real vLLM prefill and a real vLLM decode on this machine's CPU, KV by kvlane.

    vllm_pair.py MODEL_FOLDER [--module kvlane.vllm --connector KvlaneConnector] [--json FILE]
    vllm_pair.py MODEL_FOLDER --prefill-tp 2 --decode-tp 1

Prints a table: tokens equal to the same engine without transfer; all prompt tokens from outside; the
control with wrong blocks differs; prefill killed before decode asks, under both failure policies; blocks
of prefill free again. With tensor parallelism that is not 1 the engines compute in float32, since sums
of ranks differ in bfloat16, and nobody is killed.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time

LENGTHS = (17, 31, 32, 33, 64, 200, 513, 1000)
TOKENS = 24
# Ranks of vLLM spin: with more of them than cores a process may not run for seconds.
PATIENT = {"peer_timeout_ms": 15000, "connect_timeout_ms": 15000}
BLOCK = 32


def prompts(seed):
    # Of all sizes around a block's; the first token differs, so that no prefix is shared.
    draw = random.Random(seed)
    return [[draw.randrange(3, 290) for _ in range(length)] for length in LENGTHS]


def engine(role, options, policy):
    from vllm import LLM
    from vllm.config import KVTransferConfig

    return LLM(
        model=options.model,
        dtype=options.dtype,
        tensor_parallel_size=options.tp,
        max_model_len=2048,
        max_num_seqs=8,
        enforce_eager=True,
        kv_cache_memory_bytes=64 << 20,
        block_size=BLOCK,
        seed=0,
        disable_log_stats=False,
        kv_transfer_config=KVTransferConfig(
            kv_connector=options.connector,
            kv_connector_module_path=options.module,
            engine_id=role,
            kv_role="kv_producer" if role == "prefill" else "kv_consumer",
            kv_load_failure_policy=policy,
            kv_connector_extra_config={
                "port": options.port,
                "lease_s": 40,
                "transfer_s": 20,
                "settings": PATIENT,
            },
        ),
    )


def generate(llm, prompts, tokens, params=None, salt=None):
    from vllm import SamplingParams

    def sampling(i):
        extra = {"kv_transfer_params": params[i]} if params else None
        return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, extra_args=extra)

    asked = [{"prompt_token_ids": p, **({"cache_salt": salt} if salt else {})} for p in prompts]
    return llm.generate(asked, [sampling(i) for i in range(len(prompts))], use_tqdm=False)


def tokens_of(outputs):
    return [list(output.outputs[0].token_ids) for output in outputs]


def say(**words):
    print("@" + json.dumps(words), flush=True)


def prefill(options):
    """Answers each line on standard input: a seed to prefill, or nothing more to do."""
    llm = engine("prefill", options, "fail")
    say(ready=True)
    for line in sys.stdin:
        seed = int(line)
        these = prompts(seed)
        ours = generate(llm, these, 1, [{"do_remote_decode": True}] * len(these))
        alone = generate(llm, these, TOKENS, salt="alone")
        say(params=[o.kv_transfer_params for o in ours], tokens=tokens_of(alone))
    os._exit(0)


def decode(options):
    """Each line: the prompts' seed and their parameters."""
    llm = engine("decode", options, options.policy)
    say(ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            outputs = generate(llm, prompts(asked["seed"]), TOKENS, asked["params"])
        except Exception as error:  # what a request gets under policy fail
            say(error=repr(error))
            continue
        external = sum(
            metric.value
            for metric in llm.get_metrics()
            if metric.name == "vllm:prompt_tokens_by_source"
            and metric.labels.get("source") == "external_kv_transfer"
        )
        reasons = [output.outputs[0].finish_reason for output in outputs]
        say(tokens=tokens_of(outputs), external=external, reasons=reasons)
    os._exit(0)


class Child:
    def __init__(self, role, options, cores, tp=1, **more):
        words = [sys.executable, __file__, options.model, "--role", role]
        words += ["--module", options.module, "--connector", options.connector]
        dtype = "bfloat16" if options.prefill_tp == options.decode_tp == 1 else "float32"
        for name, value in {**more, "tp": tp, "dtype": dtype}.items():
            words += [f"--{name}", str(value)]
        environment = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": cores if tp == 1 else "|".join("01"[r % 2] for r in range(tp)),
        }
        self.log = open(f"{options.logs}/{role}-{more.get('policy', '')}.log", "w", encoding="utf-8")
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
            env={**os.environ, **environment},
        )

    def answer(self):
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
            self.log.write(line)
        self.end()
        raise SystemExit(f"{self.log.name}: the engine has ended")

    def end(self):
        """At once, and the ranks that it has started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def ask(self, words):
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        return self.answer()


def lose(options, first, recompute, row):
    """Prefill is killed before decode asks, under both policies."""
    count = len(LENGTHS)
    lost, lost_again = first.ask("3"), first.ask("4")
    first.end()
    left = recompute.ask(json.dumps({"seed": 3, "params": lost["params"]}))
    equal = sum(a == b for a, b in zip(left["tokens"], lost["tokens"]))
    row("lost, recompute", equal == count, f"{equal} of {count} equal after prefill was killed")
    recompute.end()

    fails = Child("decode", options, "1", port=21700, policy="fail")
    fails.answer()
    ended = fails.ask(json.dumps({"seed": 4, "params": lost_again["params"]}))
    reasons = ended.get("reasons", [])
    row("lost, fail", "error" in ended or all(reason == "error" for reason in reasons),
        f"every request ends with an error: {ended.get('error', set(reasons))}")
    fails.end()


def run(options):
    rows = []

    def row(name, good, what):
        rows.append({"check": name, "passed": bool(good), "what": what})
        print(f"{'passed' if good else 'FAILED':8} {name}: {what}", flush=True)

    begin = time.monotonic()
    first = Child("prefill", options, "0", options.prefill_tp, port=21500)
    recompute = Child("decode", options, "1", options.decode_tp, port=21600, policy="recompute")
    first.answer(), recompute.answer()
    count = len(LENGTHS)

    source = first.ask("1")
    got = recompute.ask(json.dumps({"seed": 1, "params": source["params"]}))
    equal = sum(a == b for a, b in zip(got["tokens"], source["tokens"]))
    row("tokens", equal == count, f"{equal} of {count} prompts equal to the engine alone")
    row("external", got["external"] >= sum(LENGTHS) - count,
        f"{got['external']:.0f} of {sum(LENGTHS)} prompt tokens came from outside")

    wrong = first.ask("2")
    for params in wrong["params"]:
        params["remote_block_ids"] = [[(b + 7) % 64 + 1 for b in params["remote_block_ids"][0]]]
    other = recompute.ask(json.dumps({"seed": 2, "params": wrong["params"]}))
    differ = sum(a != b for a, b in zip(other["tokens"], wrong["tokens"]))
    row("control", differ >= count - 1, f"{differ} of {count} differ when the blocks are wrong ones")

    again = first.ask("1")
    back = recompute.ask(json.dumps({"seed": 1, "params": again["params"]}))
    equal = sum(a == b for a, b in zip(back["tokens"], again["tokens"]))
    row("again", equal == count, f"{equal} of {count} equal with blocks that were used before")

    if options.prefill_tp == options.decode_tp == 1:
        lose(options, first, recompute, row)
    for child in (first, recompute):
        child.end()
    print(f"{len(rows)} checks in {time.monotonic() - begin:.0f} s; logs in {options.logs}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    return 0 if all(r["passed"] for r in rows) else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--module", default="kvlane.vllm")
    parser.add_argument("--connector", default="KvlaneConnector")
    parser.add_argument("--json")
    parser.add_argument("--logs", default="/tmp")
    parser.add_argument("--prefill-tp", type=int, default=1)
    parser.add_argument("--decode-tp", type=int, default=1)
    parser.add_argument("--tp", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="bfloat16", help=argparse.SUPPRESS)
    parser.add_argument("--role", choices=("prefill", "decode"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--policy", default="fail", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        return {"prefill": prefill, "decode": decode}[options.role](options)
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
