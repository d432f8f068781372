#!/usr/bin/env python3
"""What PyTorch, bitsandbytes and PEFT do on this machine's GPU, for the shapes of op_bench and step_bench.

  compare_peers_gpu.py ops    --out FILE      single ops, under op_bench's names
  compare_peers_gpu.py steps  --out FILE [--models FOLDER] [--only NAME,NAME] [--kind nf4|bf16|plain] [--compile]
  compare_peers_gpu.py all    --out FILE
  --smoke: tiny shapes on the CPU, to see that the script runs; its times mean nothing.
  --seconds N: begin nothing more after N seconds.

Needs torch. bitsandbytes, transformers and peft are used where Python has them; what is left out for want of one is
printed and recorded. FILE is written after each figure, so that what was measured outlasts an interruption, and what
it held of the other part stays.

Ops are timed as op_bench does it: copies of the op over operands of their own, four times the second-level cache
together, in one CUDA graph, started again and again between two waits ("graph": false where a library's call cannot
be captured: then its launches are part of the time). A step is 2 x 2048 tokens, 4 accumulations, after one that warms
up; the median of three. "device_bytes" is what the driver says is taken of the card after the steps, context and
libraries included; "peak_reserved_bytes" is PyTorch's own count.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time

try:
    import torch
except ImportError:
    sys.exit("compare_peers_gpu.py: Python has no torch: no rival can be timed; in gpu_qualify.sh QLORA_PYTHON names another")
import torch.nn.functional as F

import peer_models

WEIGHTS = [(4096, 4096), (4096, 14336), (14336, 4096)]  # in, out
ROWS = [1, 16, 512, 1024, 2048, 4096, 8192]
BACKWARD_ROWS = 512
ATTENTION = [("llama3_8b", 32, 8, 128), ("qwen3_0.6b", 16, 8, 128)]
CONTEXTS = [2048, 4096, 8192]
PARAMETERS = 41943040
COPY_BYTES = 1 << 30
MODELS = ["qwen3_0.6b", "qwen3_1.7b", "qwen3_4b", "qwen3_8b", "llama3_8b", "qwen3_14b"]
STEP = {"rows": 2, "tokens": 2048, "accumulation": 4, "rank": 16}
BATCH_SECONDS = 0.1


class Report:
    """The JSON file."""

    def __init__(self, path):
        self.path = path
        self.data = {"context": {}, "ops": [], "steps": [], "skipped": {}}
        self.part = ""
        if os.path.exists(path):
            with open(path) as file:
                self.data.update(json.load(file))

    def begin(self, part):
        self.part = part
        self.data["skipped"][part] = []

    def save(self):
        with open(self.path + ".new", "w") as file:
            json.dump(self.data, file, indent=1)
        os.replace(self.path + ".new", self.path)

    def skip(self, reason):
        print("skipped:", reason, flush=True)
        if reason not in self.data["skipped"][self.part]:
            self.data["skipped"][self.part].append(reason)
        self.save()


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def describe(device):
    context = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d %H:%M:%S")}
    for name in ("bitsandbytes", "transformers", "peft"):
        if peer_models.has(name):
            context[name] = __import__(name).__version__
    context["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu (smoke test)"
    if device == "cuda":
        context["l2_bytes"] = torch.cuda.get_device_properties(0).L2_cache_size
    return context


class Ops:
    """Times single ops into a report."""

    def __init__(self, report, device, smoke, deadline):
        self.report, self.device, self.smoke, self.deadline = report, device, smoke, deadline
        self.rotation = 4 * report.data["context"].get("l2_bytes", 0)

    def random(self, *shape, dtype=torch.bfloat16, deviation=1.0):
        return torch.randn(*shape, device=self.device, dtype=torch.float32).mul_(deviation).to(dtype)

    def time(self, name, contender, make, amounts, capture=True):
        """make() gives a function over operands of its own; amounts: its "flops" and "bytes"."""
        if time.monotonic() > self.deadline:
            return self.report.skip(f"{name} ({contender}): no time left")
        try:
            copies = max(1, min(64, -(-self.rotation // max(1, int(amounts["bytes"])))))
            functions = [make() for _ in range(copies)]
            seconds, graph = self.seconds(functions, capture)
        except Exception as error:  # a library that lacks the op, or memory for it: the others go on
            return self.report.skip(f"{name} ({contender}): {type(error).__name__}: {str(error).splitlines()[0]}")
        finally:
            functions = None
            gc.collect()
        result = {"name": name, "contender": contender, "seconds": seconds, "graph": graph, "copies": copies}
        if amounts.get("flops"):
            result["tflops"] = amounts["flops"] / seconds / 1e12
        result["gbytes"] = amounts["bytes"] / seconds / 1e9
        ops = self.report.data["ops"]
        ops[:] = [op for op in ops if (op["name"], op["contender"]) != (name, contender)] + [result]
        self.report.save()
        print(f"{name:52} {contender:14} {seconds * 1e6:10.1f} us {result.get('tflops', 0):8.1f} TFLOP/s "
              f"{result['gbytes']:8.1f} GB/s{'' if graph else '  no graph'}", flush=True)

    def seconds(self, functions, capture):
        def plain():
            for function in functions:
                function()

        plain()
        synchronize(self.device)
        run, graph = plain, False
        if capture and self.device == "cuda":
            try:
                captured = torch.cuda.CUDAGraph()
                with torch.cuda.graph(captured):
                    plain()
                run, graph = captured.replay, True
            except Exception:
                synchronize(self.device)
        run()
        synchronize(self.device)
        begin = time.perf_counter()
        run()
        synchronize(self.device)
        once = time.perf_counter() - begin
        runs = 1 if self.smoke else max(1, min(4096, round(BATCH_SECONDS / once)))
        begin = time.perf_counter()
        for _ in range(runs):
            run()
        synchronize(self.device)
        return (time.perf_counter() - begin) / runs / len(functions), graph

    def copy(self):
        size = (1 << 20) if self.smoke else COPY_BYTES

        def make():
            source = torch.zeros(size, dtype=torch.uint8, device=self.device)
            target = torch.empty_like(source)
            return lambda: target.copy_(source)

        self.time("copy", "torch", make, {"bytes": 2.0 * size})

    def products(self):
        bnb = None
        if peer_models.has("bitsandbytes"):
            import bitsandbytes as bnb
        else:
            self.report.skip("NF4 products by bitsandbytes: Python has no bitsandbytes")
        for inputs, outputs in WEIGHTS:
            def weight():
                return self.random(outputs, inputs, deviation=inputs ** -0.5)

            def packed():
                return bnb.functional.quantize_4bit(weight(), quant_type="nf4", compress_statistics=True)

            for rows in ROWS:
                shape = f"M{rows}/{inputs}x{outputs}"
                flops, moved = 2.0 * rows * inputs * outputs, 2.0 * rows * (inputs + outputs)
                dense = {"flops": flops, "bytes": moved + 2.0 * inputs * outputs}
                coded = {"flops": flops, "bytes": moved + 0.516 * inputs * outputs}

                def forward():
                    x, w, y = self.random(rows, inputs), weight(), self.random(rows, outputs)
                    return lambda: torch.mm(x, w.t(), out=y)

                def backward():
                    dy, w, dx = self.random(rows, outputs), weight(), self.random(rows, inputs)
                    return lambda: torch.mm(dy, w, out=dx)

                def forward_nf4():
                    x, (codes, state) = self.random(rows, inputs), packed()
                    return lambda: bnb.matmul_4bit(x, codes.t(), quant_state=state)

                def backward_nf4():
                    dy, (codes, state) = self.random(rows, outputs), packed()
                    return lambda: torch.mm(dy, bnb.functional.dequantize_4bit(codes, state))

                with torch.no_grad():
                    self.time(f"linear_forward/bf16/{shape}", "torch", forward, dense)
                    if bnb:
                        self.time(f"linear_forward/nf4/{shape}", "bitsandbytes", forward_nf4, coded)
                    if rows >= BACKWARD_ROWS:
                        self.time(f"linear_backward_input/bf16/{shape}", "torch", backward, dense)
                        if bnb:
                            self.time(f"linear_backward_input/nf4/{shape}", "bitsandbytes", backward_nf4, coded)
            if bnb:
                amounts = {"bytes": 2.516 * inputs * outputs}

                def quantize():
                    w = weight()
                    return lambda: bnb.functional.quantize_4bit(w, quant_type="nf4", compress_statistics=True)

                def dequantize():
                    codes, state = packed()
                    return lambda: bnb.functional.dequantize_4bit(codes, state)

                shape = f"nf4_dq/bf16/{outputs}x{inputs}"
                self.time(f"quantize/{shape}", "bitsandbytes", quantize, amounts, capture=False)
                self.time(f"dequantize/{shape}", "bitsandbytes", dequantize, amounts)

    def attention(self):
        for model, heads, kv_heads, size in ATTENTION:
            for tokens in CONTEXTS:
                flops = 2.0 * heads * size * tokens * tokens
                moved = 4.0 * tokens * size * (heads + kv_heads)

                def operands(grad):
                    return [self.random(1, h, tokens, size).requires_grad_(grad) for h in (heads, kv_heads, kv_heads)]

                def run(q, k, v):
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)

                def forward():
                    q, k, v = operands(False)
                    return lambda: run(q, k, v)

                def backward():
                    inputs = operands(True)
                    out = run(*inputs)
                    gradient = torch.randn_like(out)
                    return lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True)

                self.time(f"attention_forward/{model}/T{tokens}", "torch", forward, {"flops": flops, "bytes": moved})
                # Captured, the engine of autograd would work on a stream of its own.
                self.time(f"attention_backward/{model}/T{tokens}", "torch", backward,
                          {"flops": 2.5 * flops, "bytes": 2 * moved}, capture=False)

    def updates(self):
        n = PARAMETERS

        def adamw(optimizer, **options):
            parameter = torch.nn.Parameter(self.random(n, dtype=torch.float32, deviation=0.1))
            parameter.grad = self.random(n, dtype=torch.float32, deviation=0.001)
            return optimizer([parameter], lr=1e-4, weight_decay=0.01, **options).step

        # Neither writes the bf16 copy that ours does: 2 bytes a parameter less.
        self.time(f"adamw/f32/{n}", "torch",
                  lambda: adamw(torch.optim.AdamW, fused=self.device == "cuda"), {"bytes": 28.0 * n}, capture=False)
        if peer_models.has("bitsandbytes") and self.device == "cuda":
            import bitsandbytes as bnb

            self.time(f"adamw/8bit/{n}", "bitsandbytes", lambda: adamw(bnb.optim.AdamW8bit), {"bytes": 16.0 * n},
                      capture=False)


def run_ops(report, device, smoke, deadline):
    report.begin("ops")
    ops = Ops(report, device, smoke, deadline)
    ops.copy()
    ops.products()
    ops.attention()
    ops.updates()


def one_model(args, device):
    """In a process of its own: figures of one model to standard output, a JSON object a line."""
    rival = peer_models.Rival(args.kind, args.model, STEP["rank"], device)
    for checkpointing in (True, False):
        line = {"model": os.path.basename(args.model.rstrip("/")), "contender": args.kind, **STEP,
                "compiled": args.compile, "checkpointing": checkpointing}
        try:
            rival.checkpoint(checkpointing)
            if args.compile:
                rival.compile()
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds = []
            for i in range(4):
                begin = time.perf_counter()
                line["loss"] = rival.step(STEP["rows"], STEP["tokens"], STEP["accumulation"])
                synchronize(device)
                if i > 0:
                    seconds.append(time.perf_counter() - begin)
            tokens = STEP["rows"] * STEP["tokens"] * STEP["accumulation"]
            line["tokens_per_second"] = tokens / sorted(seconds)[len(seconds) // 2]
            if device == "cuda":
                free, total = torch.cuda.mem_get_info()
                line["device_bytes"] = total - free
                line["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
        except torch.OutOfMemoryError:
            line["error"] = "out of memory"
            rival.optimizer.zero_grad(set_to_none=True)
        print("RESULT " + json.dumps(line), flush=True)


def run_steps(report, args, device, deadline):
    report.begin("steps")
    available, skipped = peer_models.kinds()
    for reason in skipped:
        report.skip("training steps, " + reason)
    kind = args.kind or available[0]
    if kind not in available:
        sys.exit(f"compare_peers_gpu.py: --kind={kind} cannot run here; can: {', '.join(available)}")
    for model in args.only.split(",") if args.only else MODELS:
        left = deadline - time.monotonic()
        if left < 20:
            report.skip(f"training steps of {model}: no time left")
            continue
        command = [sys.executable, os.path.abspath(__file__), "model", "--model", os.path.join(args.models, model),
                   "--kind", kind] + ["--compile"] * args.compile + ["--smoke"] * args.smoke
        # Its own memory, and an end to it if it hangs.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            output, _ = process.communicate(timeout=min(left, args.model_seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            report.skip(f"training steps of {model}: stopped after {min(left, args.model_seconds):.0f} s")
        else:
            if process.returncode != 0:
                report.skip(f"training steps of {model}: exit code {process.returncode}")
        for line in output.splitlines():
            if not line.startswith("RESULT "):
                continue
            result = json.loads(line[len("RESULT "):])
            key = ("model", "contender", "compiled", "checkpointing")
            steps = report.data["steps"]
            steps[:] = [s for s in steps if any(s[k] != result[k] for k in key)] + [result]
            report.save()
            speed = result.get("error") or f"{result['tokens_per_second']:.0f} tokens/s"
            print(f"{model:12} {kind:6} checkpointing {'on ' if result['checkpointing'] else 'off'} {speed:>18} "
                  f"{result.get('device_bytes', 0) / 1e9:6.1f} GB of the card", flush=True)


def shrink():
    """Shapes of a smoke test."""
    global WEIGHTS, ROWS, CONTEXTS, PARAMETERS, BACKWARD_ROWS, ATTENTION
    WEIGHTS, ROWS, BACKWARD_ROWS, CONTEXTS, PARAMETERS = [(128, 256)], [1, 32], 32, [64], 4096
    ATTENTION = [("small", 4, 2, 32)]
    STEP.update(rows=2, tokens=32, accumulation=2, rank=4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["ops", "steps", "all", "model"], help="`model` is what `steps` starts")
    parser.add_argument("--out")
    parser.add_argument("--models", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "models"))
    parser.add_argument("--only", help="folders in --models, by comma")
    parser.add_argument("--kind", choices=["nf4", "bf16", "plain"])
    parser.add_argument("--compile", action="store_true", help="torch.compile the rival")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--model-seconds", type=float, default=90)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    device = "cpu" if args.smoke else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print("compare_peers_gpu.py: torch sees no GPU here (--smoke tries the script without one)", file=sys.stderr)
        sys.exit(69)
    if args.smoke:
        shrink()
    if args.part == "model":
        return one_model(args, device)
    if not args.out:
        parser.error("--out FILE says where the figures go")
    deadline = time.monotonic() + args.seconds
    report = Report(args.out)
    report.data["context"].update(describe(device))
    if args.part != "steps":
        run_ops(report, device, args.smoke, deadline)
    if args.part != "ops":
        run_steps(report, args, device, deadline)
    report.save()


if __name__ == "__main__":
    main()
