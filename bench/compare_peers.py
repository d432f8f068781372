#!/usr/bin/env python3
"""Our CPU kernels beside PyTorch (oneDNN) and bitsandbytes: one run, turn by turn, on one machine.

Usage: compare_peers.py BUILD/bench/op_bench [--rounds N] [--out FILE]
Needs torch and bitsandbytes. Each round times every contender once, so that a noisy neighbour hits all of them; the
best round of each counts.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time

import bitsandbytes
import bitsandbytes.functional as bnb
import torch

N = K = 4096


def best_ms(function, repeats=3):
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def ours(binary, name):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([binary, f"--benchmark_filter=^{name}/real_time$", "--benchmark_min_time=0.2",
                        f"--benchmark_out={out.name}", "--benchmark_out_format=json"],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       env={**os.environ, "QLORA_BENCH_THREADS": str(torch.get_num_threads())})
        report = json.load(open(out.name))
    return report["benchmarks"][0]["real_time"] / 1e3, report["context"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op_bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()

    weight = torch.randn(N, K).to(torch.bfloat16)
    codes, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    x = {m: torch.randn(m, K).to(torch.bfloat16) for m in (1, 512, 2048)}
    layer = bitsandbytes.nn.Linear4bit(K, N, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu").eval()
    linear = "linear_forward/nf4/M{}/4096x4096"
    # (name, our benchmark, the peer, how many times the peer's speed is wanted)
    rows = [
        ("nf4 M=512 / torch bf16 linear", linear.format(512), lambda: torch.nn.functional.linear(x[512], weight), 0.9),
        ("nf4 M=2048 / torch bf16 linear", linear.format(2048), lambda: torch.nn.functional.linear(x[2048], weight), 0.9),
        ("nf4 M=1 / bitsandbytes", linear.format(1), lambda: layer(x[1]), 20),
        ("quantize / bitsandbytes", "quantize/nf4_dq/bf16/4096x4096",
         lambda: bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True), 20),
        ("dequantize / bitsandbytes", "dequantize/nf4_dq/bf16/4096x4096",
         lambda: bnb.dequantize_4bit(codes, state), 3),
    ]
    our_ms = {row[0]: [] for row in rows}
    peer_ms = {row[0]: [] for row in rows}
    context = {}
    with torch.no_grad():
        for _ in range(args.rounds):
            for name, benchmark, peer, _ in rows:
                milliseconds, context = ours(args.op_bench, benchmark)
                our_ms[name].append(milliseconds)
                peer_ms[name].append(best_ms(peer))
    results = []
    print(f"{context.get('cpu')}; {context.get('device')}; torch {torch.__version__}, "
          f"bitsandbytes {bitsandbytes.__version__}, {torch.get_num_threads()} threads")
    print(f"{'':32} {'ours ms':>9} {'peer ms':>9} {'ratio':>7} {'wanted':>7}")
    for name, _, _, wanted in rows:
        a, b = min(our_ms[name]), min(peer_ms[name])
        results.append({"name": name, "ours_ms": a, "peer_ms": b, "ratio": b / a, "wanted": wanted})
        print(f"{name:32} {a:9.2f} {b:9.2f} {b / a:7.2f} {wanted:7.2f}")
    if args.out:
        with open(args.out, "w") as out:
            json.dump({"context": context, "torch": torch.__version__,
                       "bitsandbytes": bitsandbytes.__version__, "results": results}, out, indent=1)


if __name__ == "__main__":
    main()
