"""Runs qlora_engine on jobs made by the checks, and compares what comes out.

Every check is a script: `python check_x.py QLORA_ENGINE`. It prints a line per comparison with the
largest difference, and exits with 1 if one of them failed.
"""
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

# Nothing here is to be fetched, and the libraries' advice is not the checks' business.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402

torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)

BINARY = str(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else "qlora_engine"
# Held until the process ends.
_SCRATCH = tempfile.TemporaryDirectory(prefix="qlora-interop-")
SCRATCH = Path(_SCRATCH.name)
_failures = 0
_count = 0


def run(command, job, folder):
    """Writes `job` (protobuf text) into `folder` and runs one command on it; returns its output."""
    path = Path(folder) / f"{command}.textproto"
    path.write_text(job)
    done = subprocess.run([BINARY, command, str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command} exited with {done.returncode}:\n{job}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def write_records(path, documents):
    """PRETOKENIZED JSONL: `documents` are (ids, number of leading tokens that aren't trained)."""
    with open(path, "w") as file:
        for ids, prompt in documents:
            ids = [int(i) for i in ids]
            labels = [-100] * prompt + ids[prompt:]
            file.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")


def random_documents(vocab, lengths, seed):
    """[(ids, prompt tokens)]: `lengths` are (prompt, completion)."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randint(3, vocab, (p + c,), generator=generator), p) for p, c in lengths]


def report(what, ok, detail):
    global _failures, _count
    _count += 1
    _failures += not ok
    print(f"{'ok    ' if ok else 'FAILED'}  {what}: {detail}", flush=True)


def equal(what, found, wanted):
    """Both print the same."""
    same = found == wanted
    report(what, same, "equal" if same else f"found {found}, wanted {wanted}")


def close(what, pairs, limit, relative=False):
    """Largest |found - wanted| (over |wanted| where relative) of `pairs` of tensors or numbers."""
    worst, count = 0.0, 0
    for found, wanted in pairs:
        found, wanted = torch.as_tensor(found).double(), torch.as_tensor(wanted).double()
        if found.shape != wanted.shape:
            report(what, False, f"shapes {tuple(found.shape)} and {tuple(wanted.shape)}")
            return
        difference = (found - wanted).abs()
        if relative:
            difference = difference / wanted.abs().clamp_min(1e-30)
        # NaN must not compare as small.
        worst = max(worst, float(difference.nan_to_num(nan=float("inf")).max()))
        count += found.numel()
    kind = "relative difference" if relative else "difference"
    report(what, count > 0 and worst <= limit,
           f"{count} values, largest {kind} {worst:.3g} (limit {limit:.3g})")


def finish():
    print(f"{_count - _failures} of {_count} comparisons hold")
    raise SystemExit(1 if _failures or _count == 0 else 0)
