#!/usr/bin/env python3
"""How much of several network links one transfer uses, and what is left when one of them goes.

Two network namespaces stand for two hosts, joined by links of equal, shaped rate (tbf) and one more
for control connections. Each link alone is the baseline; all figures are of one run.

  bench/many_links.py --kvlane build/release/bin/kvlane
  bench/many_links.py --kvlane … --links 2,4 --mbit 1000 --seconds 4 --json

Needs root, iproute2 and a kernel with tbf; exit status 77 without. Exit status 1: a wrong byte, or a
transfer that was lost with a link.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import time

CONTROL = "10.214.0"
SKIPPED = 77
SETTLE_S = 1.0  # after a link has gone: what comes later counts
EVERY_S = 0.1


class NoLinks(Exception):
    """This machine cannot have such links."""


def run(command, check=True):
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise NoLinks(f"{command}: {done.stderr.strip() or 'failed'}")


class Hosts:
    """Two namespaces and `links` shaped pairs of devices l1, l2, …; gone at the end of a with."""

    def __init__(self, links, mbit):
        self.names = [f"kvl-m{side}{os.getpid()}" for side in "ab"]
        self.links, self.mbit = links, mbit

    def __enter__(self):
        for name in self.names:
            run(f"ip netns add {name}")
            run(f"ip -n {name} link set lo up")
        for number in range(self.links + 1):
            device = f"l{number}" if number else "control"
            run(
                f"ip link add {device} netns {self.names[0]} type veth peer name {device} "
                f"netns {self.names[1]}"
            )
            for side, name in enumerate(self.names):
                run(f"ip -n {name} addr add 10.214.{number}.{side + 1}/24 dev {device}")
                run(f"ip -n {name} link set {device} up")
                if number:
                    run(
                        f"ip netns exec {name} tc qdisc add dev {device} root tbf "
                        f"rate {self.mbit}mbit burst 256kb latency 50ms"
                    )
        return self

    def __exit__(self, *_):
        for name in self.names:
            run(f"ip netns del {name}", check=False)

    def command(self, side, words):
        return ["ip", "netns", "exec", self.names[side], *words]

    def sent_bytes(self, device):
        """Of side 1, which writes."""
        text = subprocess.run(
            self.command(1, ["cat", f"/sys/class/net/{device}/statistics/tx_bytes"]),
            capture_output=True,
            text=True,
            check=True,
        )
        return int(text.stdout)


class Run:
    """One `kvlane bench` from side 1 to side 0 over some of the links."""

    def __init__(self, hosts, options, devices, seconds):
        self.hosts, self.devices = hosts, devices
        settings = ["--tcp.interface", ",".join(devices), "--insecure", "true", "--tcp.lanes", "1"]
        self.server = subprocess.Popen(
            hosts.command(0, [options.kvlane, "bench", "--serve", f"{CONTROL}.1:0", *settings]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        address = self.server.stdout.readline().split()[-1]
        words = f"bench --peer {address} --transport tcp --pages 512 --page-bytes 64k --depth 2 "
        words += f"--arena-bytes 64m --baselines none --json --verify --progress thread --seconds {seconds}"
        self.client = subprocess.Popen(
            hosts.command(1, [options.kvlane, *words.split(), *settings]),
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait(self):
        out, _ = self.client.communicate()
        self.server.terminate()
        self.server.wait()
        if self.client.returncode != 0:
            sys.exit(f"bench over {','.join(self.devices)} failed: {self.client.returncode}")
        return json.loads(out.splitlines()[0])["first_gb_per_s"]

    def watch(self, until):
        """[(time, bytes sent since the beginning)] while the bench runs; `until(time)` is called."""
        samples = []
        begin = time.monotonic()
        while self.client.poll() is None:
            now = time.monotonic() - begin
            samples.append((now, sum(self.hosts.sent_bytes(d) for d in self.devices)))
            until(now)
            select.select([], [], [], EVERY_S)
        return samples


def rate(samples, begin, end):
    """GB/s on the wire between two times; the busiest whole stretch is what is asked for."""
    inside = [s for s in samples if begin <= s[0] <= end]
    if len(inside) < 3:
        sys.exit("the run was too short to measure: give more --seconds")
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]) / 1e9


def measure(hosts, options):
    devices = [f"l{i + 1}" for i in range(hosts.links)]
    alone = [Run(hosts, options, [d], options.seconds).wait() for d in devices]
    together = Run(hosts, options, devices, options.seconds).wait()
    row = {
        "links": hosts.links,
        "mbit_each": options.mbit,
        "alone_gb_per_s": [round(r, 4) for r in alone],
        "together_gb_per_s": round(together, 4),
        "of_sum": round(together / sum(alone), 3),
    }
    if hosts.links < 3:
        return row
    seconds = max(options.seconds, 6)
    broken = Run(hosts, options, devices, seconds)
    cut = [None]

    def break_one(now):
        # Connecting takes its moment; then all links are busy.
        if cut[0] is None and now >= seconds / 2:
            run(f"ip -n {hosts.names[1]} link set {devices[-1]} down")
            cut[0] = now

    samples = broken.watch(break_one)
    broken.wait()
    before = rate(samples, cut[0] - 2, cut[0])
    after = rate(samples, cut[0] + SETTLE_S, samples[-1][0] - 2 * EVERY_S)
    row["wire_before_gb_per_s"] = round(before, 4)
    row["wire_after_one_went_gb_per_s"] = round(after, 4)
    row["of_the_remaining"] = round(after / (before * (hosts.links - 1) / hosts.links), 3)
    return row


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kvlane", required=True, help="the program")
    parser.add_argument("--links", default="2,4", help="how many, a list")
    parser.add_argument("--mbit", type=int, default=1000, help="of each link")
    parser.add_argument("--seconds", type=float, default=4, help="of each run")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    options.kvlane = os.path.abspath(options.kvlane)
    for links in (int(word) for word in options.links.split(",")):
        try:
            with Hosts(links, options.mbit) as hosts:
                row = measure(hosts, options)
        except NoLinks as why:
            print(f"SKIPPED: {why}", file=sys.stderr)
            return SKIPPED
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        print(f"{links} links of {options.mbit} Mbit/s: {row['together_gb_per_s']:.3f} GB/s, "
              f"{row['of_sum'] * 100:.1f} % of the sum of each alone")
        if "of_the_remaining" in row:
            print(f"  one went down: {row['of_the_remaining'] * 100:.1f} % of what the others have, "
                  f"from {SETTLE_S:.0f} s on; nothing lost", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
