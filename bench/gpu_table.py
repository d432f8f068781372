#!/usr/bin/env python3
"""README.md of a card's results, from the JSON files that gpu_qualify.sh left in its folder.

  gpu_table.py FOLDER

Takes what is there and says what is not. "wanted" is what the project asks of the figure before it.
"""

import json
import os
import sys

# Bytes of device memory in which a run must fit, context and libraries included.
MEMORY_WANTED = {"llama_65b": 48e9, "llama_33b": 24e9}
# Share of the card's dense bf16 rate.
STEP_WANTED = {"llama3_8b": 0.75, "qwen3_8b": 0.75, "qwen3_14b": 0.75, "qwen3_4b": 0.70, "qwen3_1.7b": 0.58,
               "qwen3_0.6b": 0.43}
# Bound by memory, against the card's copy.
COPY_WANTED = 0.85
BY_MEMORY = ("quantize", "dequantize", "rms_norm_forward", "rms_norm_backward", "rope", "gated_activation_forward",
             "gated_activation_backward", "adamw", "embedding_forward", "kv_append", "norm_and_finite", "add_gradient",
             "zero", "pack", "unpack")
VARIANTS = ("fused", "dequantized", "hopper")


def product_wanted(rows, inputs, outputs):
    """Times the speed of the dense bf16 product, forward and backward."""
    if rows <= 1:
        return 3.3 if inputs * outputs >= 58e6 else 2.5
    return 2.5 if rows <= 16 else 0.9 if rows < 2048 else 0.95


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows] + [""]


def ratio(a, b, digits=2):
    return f"{a / b:.{digits}f}" if a and b else ""


def percent(share):
    return f"{100 * share:.0f} %" if share else ""


def read_lines(path):
    with open(path) as file:
        return [json.loads(line) for line in file if line.strip()]


class Results:
    def __init__(self, folder):
        self.folder, self.missing = folder, []
        groups = [self.load(f"ops_{group}.json", json.load) or {} for group in ("linear", "other")]
        self.peers = self.load("peers.json", json.load) or {}
        self.steps = self.load("steps.json") or []
        self.memory = self.load("memory.json") or []
        self.parts = self.text("parts.txt").splitlines()
        self.context = next((group["context"] for group in groups if group), {})
        self.matmul = float(self.context.get("limit_tflops", 0))
        self.copy = float(self.context.get("limit_gbytes", 0))
        self.ours, self.failed = {}, []  # (name, variant or "") -> the best of its repetitions
        for entry in (entry for group in groups for entry in group.get("benchmarks", [])):
            name = entry["name"].removesuffix("/real_time")
            if entry.get("error_occurred"):
                self.failed.append(f"{name}: {entry.get('error_message')}")
                continue
            if entry.get("run_type") == "aggregate":
                continue
            base, _, last = name.rpartition("/")
            key = (base, last) if last in VARIANTS else (name, "")
            if key not in self.ours or entry["real_time"] < self.ours[key]["real_time"]:
                self.ours[key] = entry
        self.theirs = {(op["name"], op["contender"]): op for op in self.peers.get("ops", [])}

    def load(self, name, read=None):
        path = os.path.join(self.folder, name)
        if not os.path.exists(path):
            self.missing.append(name)
            return None
        if read is None:
            return read_lines(path)
        with open(path) as file:
            return read(file)

    def text(self, name):
        path = os.path.join(self.folder, name)
        if not os.path.exists(path):
            return ""
        with open(path) as file:
            return file.read().strip()

    def variants(self, name):
        """Our entries of a case, the fastest first: (variant, microseconds, entry)."""
        found = [(variant, entry["real_time"], entry) for (base, variant), entry in self.ours.items() if base == name]
        return sorted(found, key=lambda item: item[1])

    def default(self, name):
        """The variant that the device's table picks, which is timed first."""
        return next(variant for base, variant in self.ours if base == name)

    def best_us(self, name):
        found = self.variants(name)
        return found[0][1] if found else None

    def peer_us(self, name, contender):
        entry = self.theirs.get((name, contender))
        return entry["seconds"] * 1e6 if entry else None


def heading(results):
    lines = [f"# {os.path.basename(os.path.abspath(results.folder))}", ""]
    if results.text("card.txt"):
        lines += [results.text("card.txt"), ""]
    if results.context:
        lines += [f"Marks, measured by `op_bench` in the run below: dense bf16 product {results.matmul:.0f} TFLOP/s "
                  f"(8192 rows, 4096 to 14336, variant {results.context.get('limit_tflops_by')}, random data), "
                  f"device-to-device copy {results.copy:.0f} GB/s (read and written bytes).", ""]
    peers = results.peers.get("context", {})
    if peers:
        versions = ", ".join(f"{name} {peers[name]}" for name in ("torch", "bitsandbytes", "transformers", "peft")
                             if name in peers)
        copied = results.theirs.get(("copy", "torch"))
        lines += [f"Rivals: {versions}" + (f"; its copy {copied['gbytes']:.0f} GB/s." if copied else "."), ""]
    if results.parts:
        rows = [(part, verdict, f"{seconds} s") for part, verdict, seconds in (p.split() for p in results.parts)]
        lines += table(("part", "verdict", "took"), rows)
    if results.missing:
        lines += [f"Not measured: {', '.join(results.missing)}.", ""]
    skipped = [reason for reasons in results.peers.get("skipped", {}).values() for reason in reasons]
    for title, reasons in (("Left out among the rivals", skipped), ("Ops that failed", results.failed)):
        if reasons:
            lines += [f"{title}:", ""] + [f"- {reason}" for reason in reasons] + [""]
    return lines


def product_tables(results):
    lines = []
    names = list(dict.fromkeys(name for name, _ in results.ours))
    for op in ("linear_forward", "linear_backward_input"):
        rows = []
        for name in names:
            if not name.startswith(f"{op}/nf4/"):
                continue
            _, _, m, shape = name.split("/")
            inputs, outputs = map(int, shape.split("x"))
            best = results.variants(name)
            us = best[0][1]
            dense = name.replace("/nf4/", "/bf16/")
            rivals = [t for t in (results.best_us(dense), results.peer_us(dense, "torch")) if t]
            adapted = results.best_us(name.replace("/nf4/", "/nf4_r16/"))
            default = results.default(name)
            label = best[0][0] or "one"
            if default != best[0][0]:
                label += f"; default: {default}, {dict((v, t) for v, t, _ in best)[default]:.1f} µs"
            rows.append((m, shape, f"{us:.1f}", label, f"{best[0][2]['TFLOP/s']:.0f}",
                         f"{best[0][2]['GB/s']:.0f}", percent(best[0][2]["limit"]),
                         ratio(min(rivals), us) if rivals else "", product_wanted(int(m[1:]), inputs, outputs),
                         ratio(results.peer_us(dense, "torch"), us), ratio(results.peer_us(name, "bitsandbytes"), us),
                         f"{100 * (adapted / us - 1):+.1f} %" if adapted else ""))
        if rows:
            lines += [f"## {op}, NF4", "",
                      "Speeds as multiples of the dense bf16 product (the faster of ours, cuBLASLt among its variants, and "
                      "torch's), of torch's alone, and of bitsandbytes'. `variant`: the fastest, and the one that runs "
                      "by default where that is another. `r16`: what an adapter adds (wanted: 2 % at most).",
                      ""]
            lines += table(("rows", "in x out", "µs", "variant", "TFLOP/s", "GB/s", "of the card", "/ bf16", "wanted",
                            "/ torch", "/ bitsandbytes", "r16"), rows)
    return lines


def other_ops(results):
    by_memory, rest = [], []
    for (name, variant), entry in results.ours.items():
        op = name.split("/")[0]
        if op in ("linear_forward", "linear_backward_input") and "/nf4/" in name:
            continue
        label = f"{name} {variant}".strip()
        us = entry["real_time"]
        rival = min(((op["seconds"] * 1e6, contender) for (n, contender), op in results.theirs.items() if n == name),
                    default=(None, ""))
        peer = f"{ratio(rival[0], us)} {rival[1]}" if rival[0] else ""
        if op in BY_MEMORY:
            share = entry["GB/s"] / results.copy if results.copy else 0
            by_memory.append((label, f"{us:.1f}", f"{entry['GB/s']:.0f}", percent(share), percent(COPY_WANTED), peer))
        else:
            rest.append((label, f"{us:.1f}", f"{entry['TFLOP/s']:.1f}", f"{entry['GB/s']:.0f}",
                         percent(entry["limit"]), peer))
    lines = []
    if by_memory:
        lines += ["## Ops bound by memory", ""]
        lines += table(("op", "µs", "GB/s", "of copy", "wanted", "/ rival"), by_memory)
    if rest:
        lines += ["## The other ops", ""]
        lines += table(("op", "µs", "TFLOP/s", "GB/s", "of the card", "/ rival"), rest)
    return lines


def step_table(results):
    rows = []
    peers = results.peers.get("steps", [])
    ours = {os.path.basename(s["model"].rstrip("/")): s for s in results.steps}
    for model in list(ours) + sorted({p["model"] for p in peers} - set(ours)):
        mine = ours.get(model)
        row = [model]
        if mine:
            # The mark is of random numbers; the engine's own, taken before there are weights, of zeros.
            light = results.matmul or mine["dense_tflops"]
            row += [f"{mine['tokens_per_second']:.0f}", percent(mine["useful_tflops"] / light),
                    percent(STEP_WANTED.get(model, 0)), f"{mine['planned_bytes'] / 1e9:.2f}",
                    f"{mine.get('device_bytes', 0) / 1e9:.2f}", mine["recompute"]]
        else:
            row += [""] * 6
        for checkpointing in (True, False):
            found = [p for p in peers if p["model"] == model and p["checkpointing"] == checkpointing]
            cells = []
            for p in found:
                kind = p["contender"] + (" compiled" if p.get("compiled") else "")
                if "error" in p:
                    cells.append(f"{kind}: {p['error']}")
                    continue
                gain = f" ({ratio(mine['tokens_per_second'], p['tokens_per_second'])}x)" if mine else ""
                cells.append(f"{kind}: {p['tokens_per_second']:.0f}{gain}, {p.get('device_bytes', 0) / 1e9:.1f} GB")
            row.append("<br>".join(cells))
        rows.append(row)
    if not rows:
        return []
    return ["## Training steps", "",
            "QLoRA, r = 16 on all linear layers, 2 x 2048 tokens, 4 accumulations. `of the card`: useful FLOP (4 a frozen "
            "weight and token, and attention) against the dense bf16 mark. `taken`: the card's memory less what its driver "
            "calls free after the last step (cudaMemGetInfo), context and libraries included, for the rivals too. In "
            "brackets how many times the rival's tokens/s ours are.", ""] + table(
                ("model", "tokens/s", "of the card", "wanted", "plan, GB", "taken, GB", "recompute",
                 "rival, checkpointing", "rival, none"), rows)


def memory_table(results):
    rows = []
    for s in results.memory:
        model = os.path.basename(s["model"].rstrip("/"))
        wanted = MEMORY_WANTED.get(model)
        taken = s.get("device_bytes", 0)
        rows.append((model, s["rank"], f"{s['rows']} x {s['tokens']}", f"{s['planned_bytes'] / 1e9:.2f}",
                     f"{taken / 1e9:.2f}", f"{wanted / 1e9:.0f}" if wanted else "",
                     "" if not wanted else "yes" if 0 < taken <= wanted else "no", f"{s['host_bytes'] / 1e9:.2f}",
                     f"{s['tokens_per_second']:.0f}"))
    if not rows:
        return []
    return ["## Peak memory", "",
            "16 accumulations, gradients summed in sequence, everything recomputed, optimizer states paged. `taken` as above; "
            "the engine takes all it needs before the first step, so that this is also the peak.", ""] + table(
                ("model", "rank", "tokens", "plan, GB", "taken, GB", "at most", "holds", "in host memory, GB", "tokens/s"),
                rows)


def main():
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]):
        sys.exit("usage: gpu_table.py FOLDER")
    results = Results(sys.argv[1])
    lines = (heading(results) + step_table(results) + memory_table(results) + product_tables(results) +
             other_ops(results))
    path = os.path.join(sys.argv[1], "README.md")
    with open(path, "w") as out:
        out.write("\n".join(lines).rstrip() + "\n")
    print(path)


if __name__ == "__main__":
    main()
