#!/usr/bin/env python3
"""The model of engine/plan/SCALING.md against steps of 1, 2 and 4 ranks of this machine, on CPUs over MPI.

  bench/scaling_check.py ENGINE MODEL_FOLDER [--ranks 2,4] [--json FILE]

Two jobs: LoRA adapters of rank 16 (a small gradient, long steps) and FULL (a large gradient, short steps). T(1) of the
model is measured beside as many neighbours as the ranks will have: n processes of one rank at once, since ranks of one
machine share its cores and its memory's rate. The rate between ranks is not known, so FULL's step on the fewest ranks gives
it; everything else is then predicted. The time of a step is that of a long run less that of a short one, over the steps
between: start-up and loading fall out.
"""
import argparse
import json
import os
import pathlib
import statistics
import struct
import subprocess
import tempfile
import time

import made_up_data

SHORT_STEPS, MORE_STEPS = 3, 12
ROUNDS = 3  # the median counts
LATENCY = 2e-5  # seconds of a message: plan.network_latency_seconds
JOBS = {
    "adapters": "mode: QLORA lora { r: 16 } training { per_device_train_batch_size: 4 %s }",
    "full": "mode: FULL training { per_device_train_batch_size: 1 %s }",
}
TOKENS = {"adapters": 128, "full": 32}  # of a sample


class Bench:
    def __init__(self, engine, model, folder):
        self.engine, self.model, self.folder = engine, model, folder
        for job, tokens in TOKENS.items():
            made_up_data.write_token_ids(folder / f"{job}.jsonl", 64, tokens)

    def train(self, job, name, steps):
        """The command line of one process that trains into the folder `name`."""
        text = JOBS[job] % f"max_steps: {steps} gradient_accumulation_steps: 1"
        path = self.folder / f"{name}.textproto"
        path.write_text(f"""
          model: "{self.model}" output_dir: "{self.folder}/{name}" overwrite_output_dir: true num_threads: 1 {text}
          data {{ train_file: "{self.folder}/{job}.jsonl" format: PRETOKENIZED max_length: {TOKENS[job]} }}""")
        return [self.engine, "train", path]

    def seconds(self, job, ranks, together, steps):
        """Of a run: `ranks` processes that train one adapter together, or each its own beside the others."""
        if together:
            commands = [["mpirun", "-n", str(ranks), "--oversubscribe", "--bind-to", "none", *self.train(job, "all", steps)]]
        else:
            commands = [self.train(job, f"own{rank}", steps) for rank in range(ranks)]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        begin = time.monotonic()
        runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) for command in commands]
        if any([run.wait() for run in runs]):
            raise SystemExit(f"failed: {commands[0]}")
        return time.monotonic() - begin

    def step(self, job, ranks, together):
        return statistics.median(
            (self.seconds(job, ranks, together, SHORT_STEPS + MORE_STEPS) -
             self.seconds(job, ranks, together, SHORT_STEPS)) / MORE_STEPS for _ in range(ROUNDS))

    def gradient_bytes(self, job):
        """Of the fp32 gradient: what was trained is what the last run has written."""
        name = "model.safetensors" if job == "full" else "adapter_model.safetensors"
        with open(self.folder / "all" / name, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        count = 0
        for key, tensor in header.items():
            if key != "__metadata__":
                elements = 1
                for extent in tensor["shape"]:
                    elements *= extent
                count += elements
        return 4 * count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    ranks = [int(n) for n in options.ranks.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options.engine.resolve(), options.model.resolve(), pathlib.Path(name))
        for job in ("full", "adapters"):
            print(f"{job}: one rank, alone: {1e3 * bench.step(job, 1, False):.1f} ms a step", flush=True)
            for n in ranks:
                alone, together = bench.step(job, n, False), bench.step(job, n, True)
                moved = 2 * (n - 1) / n * bench.gradient_bytes(job)
                rows.append({"job": job, "ranks": n, "neighbours_seconds": alone, "measured_seconds": together,
                             "bytes": moved, "messages": 2 * (n - 1)})
    first = rows[0]
    rate = first["bytes"] / (first["measured_seconds"] - first["neighbours_seconds"] - first["messages"] * LATENCY)
    print(f"rate between ranks, from full on {first['ranks']}: {rate / 1e9:.2f} GB/s")
    print("job       ranks  beside neighbours ms  predicted ms  measured ms  measured/predicted")
    for row in rows:
        row["predicted_seconds"] = row["neighbours_seconds"] + row["bytes"] / rate + row["messages"] * LATENCY
        print(f"{row['job']:8}  {row['ranks']:5d}  {1e3 * row['neighbours_seconds']:20.1f}"
              f"  {1e3 * row['predicted_seconds']:12.1f}  {1e3 * row['measured_seconds']:11.1f}"
              f"  {row['measured_seconds'] / row['predicted_seconds']:18.2f}")
    if options.json:
        options.json.write_text(json.dumps({"cpu": made_up_data.cpu_name(), "cores": os.cpu_count(),
                                            "model": options.model.name, "bytes_per_second": rate, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
