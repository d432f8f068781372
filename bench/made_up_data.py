"""What the scripts here that time whole runs share: data of no meaning, and the machine's name."""
import json
import random


def write_token_ids(path, samples, tokens):
    """PRETOKENIZED data: so many samples of so many ids each, the same every time."""
    draw = random.Random(1)
    with open(path, "w") as out:
        for _ in range(samples):
            ids = [draw.randrange(100, 4000) for _ in range(tokens)]
            out.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")


def cpu_name():
    return next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
