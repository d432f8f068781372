#!/usr/bin/env python3
"""Adapters trained together against one after another, over tokens a step.

  bench/sweep_curve.py ENGINE MODEL_FOLDER [--adapters 8] [--tokens 16,32,64,128,256] [--json FILE]

Every adapter gets one sample of so many tokens a step. For each number of tokens the same steps are made by one sweep and
by one adapter alone, turn by turn; alone counts once an adapter. The time of a step is that of a long run less that of a
short one, over the steps between: start-up and loading fall out. It is taken twice: as processor time on one thread,
which other programs on the machine disturb least, and as wall time on all threads.
"""
import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import tempfile
import time

import made_up_data

SHORT_STEPS = 4
MEASURED_TOKENS = 1024  # of one adapter, in the steps by which the long run is longer
ROUNDS = 3              # the fastest counts


def run(engine, model, folder, command, tokens, adapters, steps, threads):
    """Processor and wall seconds of one run."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    job = folder / "job.textproto"
    sweep = f"sweep {{ {' '.join(f'seeds: {i}' for i in range(adapters))} }}" if command == "sweep" else ""
    job.write_text(f"""
      model: "{model}" output_dir: "{folder}/out" num_threads: {threads}
      training {{ max_steps: {steps} per_device_train_batch_size: 1 gradient_accumulation_steps: 1 }}
      data {{ train_file: "{folder}/data.jsonl" format: PRETOKENIZED max_length: {max(tokens, 2)} }}
      {sweep}""")
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([engine, command, job], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def step_seconds(engine, model, folder, tokens, adapters, threads, kind):
    """Seconds of a step of all adapters, one after another and together: kind 0 of the processor, 1 of the clock."""
    more = max(8, MEASURED_TOKENS // tokens)
    fastest = {}
    for _ in range(ROUNDS):
        for command in ("train", "sweep"):
            for steps in (SHORT_STEPS, SHORT_STEPS + more):
                seconds = run(engine, model, folder, command, tokens, adapters, steps, threads)[kind]
                fastest[command, steps] = min(seconds, fastest.get((command, steps), seconds))
    alone, together = ((fastest[command, SHORT_STEPS + more] - fastest[command, SHORT_STEPS]) / more
                       for command in ("train", "sweep"))
    return adapters * alone, together


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--tokens", default="16,32,64,128,256")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    engine, model = options.engine.resolve(), options.model.resolve()
    rows = []
    print("tokens  processor: alone ms  together ms  ratio    wall: alone ms  together ms  ratio")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for tokens in map(int, options.tokens.split(",")):
            made_up_data.write_token_ids(folder / "data.jsonl", 16, tokens)
            row = {"tokens": tokens}
            for kind, threads, label in ((0, 1, "processor"), (1, os.cpu_count(), "wall")):
                alone, together = step_seconds(engine, model, folder, tokens, options.adapters, threads, kind)
                row[label] = {"threads": threads, "alone_seconds": alone, "together_seconds": together,
                              "ratio": alone / together}
            rows.append(row)
            p, w = row["processor"], row["wall"]
            print(f"{tokens:6d}  {1e3 * p['alone_seconds']:19.1f}  {1e3 * p['together_seconds']:11.1f}  {p['ratio']:5.2f}"
                  f"    {1e3 * w['alone_seconds']:14.1f}  {1e3 * w['together_seconds']:11.1f}  {w['ratio']:5.2f}",
                  flush=True)
    if options.json:
        options.json.write_text(json.dumps({"cpu": made_up_data.cpu_name(), "model": model.name,
                                            "adapters": options.adapters, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
