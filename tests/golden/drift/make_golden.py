"""What quantization costs, by bitsandbytes, torch and numpy in float64: makes the files beside this one.

    pip install torch==2.15.0 bitsandbytes==0.50.2 numpy==2.4.6 safetensors==0.8.0
    python make_golden.py

  weights.safetensors   WEIGHT: a weight as stored, flat (BF16, F16 or F32), and of each case NAME what it is quantized to:
      NAME.codes         U8 [ceil(n/2)], the first of a pair in the high nibble
      NAME.absmax        F32 [blocks]; with double quantization U8 [blocks], NAME.nested_absmax F32 [groups of 256 blocks]
                         and NAME.offset F32 [1]
  weights.json          of each case its WEIGHT, type, block size, and the errors of the dequantized values in float64
  logits.safetensors    `baseline`, `other` F32 [T, V], `targets` I32 [T]; `stream`, `other_stream` F32 [T, H]
  logits.json           by row and over all: loss, KL(baseline || other), agreement; cosine and relative error of the streams

Types nf4 and fp4 (E2M1) are quantized by bitsandbytes. It has the values of E3M0, create_fp8_map(True, 3, 0, 4), but no
quantizer for them, and none for INT4 (k/7): nearest value, here in float64.
"""
import json
import pathlib

import bitsandbytes.functional as bnb
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
GROUP = 256
DYNAMIC = bnb.create_dynamic_map().float().numpy()

# Codes in the order of quant/codebook.h, values in bitsandbytes'.
E3M0 = [0.0] + [2.0**-i for i in range(6, -1, -1)]
BOOKS = {
    "nf4": bnb.get_4bit_type("nf4", device="cpu").numpy(),
    "fp4": bnb.get_4bit_type("fp4", device="cpu").numpy(),
    "fp4_e3m0": np.array(E3M0 + [-x for x in E3M0], np.float32),
    "int4": np.array([k / 7 for k in range(8)] + [-1.0] + [k / 7 for k in range(-7, 0)], np.float32),
}
assert set(np.abs(BOOKS["fp4_e3m0"])) == set(bnb.create_fp8_map(True, 3, 0, 4).abs().tolist())

# weight, type, block size, double quantization
CASES = [
    ("outliers", "nf4", 64, False), ("outliers", "nf4", 64, True), ("outliers", "nf4", 32, True),
    ("outliers", "nf4", 128, True), ("outliers", "nf4", 4096, False), ("outliers", "fp4", 64, False),
    ("outliers", "fp4", 64, True), ("outliers", "fp4_e3m0", 64, False), ("outliers", "int4", 64, False),
    ("outliers", "int4", 64, True), ("zero_blocks", "nf4", 64, False), ("zero_blocks", "nf4", 64, True),
    ("zero_blocks", "fp4", 64, False), ("zero_blocks", "int4", 64, False), ("one_short_block", "nf4", 64, False),
    ("one_short_block", "fp4_e3m0", 32, False), ("groups", "nf4", 32, True), ("groups", "fp4", 32, True),
]


def make_weights():
    rng = np.random.default_rng(5)
    outliers = rng.normal(0, 0.02, 64 * 41 + 13)
    outliers[[100, 777, 1400, 2630]] = [1.5, -0.9, 2.0, 0.6]  # the last one in the short block
    zero_blocks = rng.normal(0, 0.02, 64 * 13 + 1)
    for block in (0, 4, 12):
        zero_blocks[block * 64:(block + 1) * 64] = 0
    groups = rng.normal(0, 1, 32 * 300 + 7) * np.repeat(rng.uniform(0.01, 0.1, 301), 32)[:32 * 300 + 7]
    return {"outliers": torch.from_numpy(outliers).to(torch.bfloat16),
            "zero_blocks": torch.from_numpy(zero_blocks).float(),
            "one_short_block": torch.from_numpy(rng.normal(0, 0.02, 37)).half(),
            "groups": torch.from_numpy(groups).to(torch.bfloat16)}


def pack(codes):
    codes = np.append(codes, 0).astype(np.uint8) if codes.size % 2 else codes.astype(np.uint8)
    return codes[0::2] << 4 | codes[1::2]


def unpack(packed, count):
    return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]


def quantize_nearest(w, book, block):
    """The nearest value for each weight; the first of two that are as near."""
    codes, absmax = [], []
    for begin in range(0, w.size, block):
        part = w[begin:begin + block].astype(np.float64)
        absmax.append(np.abs(part).max())
        scaled = part / (absmax[-1] if absmax[-1] > 0 else 1)
        codes.append(np.abs(scaled[:, None] - book[None].astype(np.float64)).argmin(1))
    return pack(np.concatenate(codes)), np.array(absmax, np.float32)


def double_quantize(absmax):
    offset = np.float32(absmax.astype(np.float64).mean())
    d = absmax - offset
    nested = np.array([np.abs(d[b:b + GROUP]).max() for b in range(0, d.size, GROUP)], np.float32)
    scaled = d / np.repeat(nested, GROUP)[:d.size]
    return np.abs(scaled[:, None] - DYNAMIC[None]).argmin(1).astype(np.uint8), nested, offset


def quantize(weight, kind, block, double_quant):
    """The stored parts, and the fp32 values that they stand for."""
    parts = {}
    if kind in ("nf4", "fp4"):
        packed, state = bnb.quantize_4bit(weight, blocksize=block, quant_type=kind, compress_statistics=double_quant)
        packed, absmax = packed.reshape(-1).numpy(), state.absmax.numpy()
        if double_quant:
            parts["nested_absmax"], offset = state.state2.absmax.float().numpy(), np.float32(state.offset.item())
    else:
        packed, absmax = quantize_nearest(weight.float().numpy(), BOOKS[kind], block)
        if double_quant:
            absmax, parts["nested_absmax"], offset = double_quantize(absmax)
    parts |= {"codes": packed, "absmax": absmax}
    if double_quant:
        parts["offset"] = np.array([offset], np.float32)
        # Two rounded operations.
        absmax = DYNAMIC[absmax] * np.repeat(parts["nested_absmax"], GROUP)[:absmax.size] + offset
    values = BOOKS[kind][unpack(packed, weight.numel())] * np.repeat(absmax, block)[:weight.numel()]
    assert values.dtype == np.float32
    if kind in ("nf4", "fp4"):
        theirs = bnb.dequantize_4bit(torch.from_numpy(packed)[:, None], state).reshape(-1)
        assert torch.equal(theirs, torch.from_numpy(values).to(weight.dtype).reshape(-1))
    return parts, values


def measure(weight, values, block):
    w, e = weight.double().numpy(), np.abs(values.astype(np.float64) - weight.double().numpy())
    of_blocks = np.array([np.sqrt(np.mean(e[b:b + block] ** 2)) for b in range(0, e.size, block)])
    median = np.sort(of_blocks)[of_blocks.size // 2]
    return {"snr_db": 10 * np.log10(np.sum(w * w) / np.sum(e * e)), "relative_error": np.sqrt(np.sum(e * e) / np.sum(w * w)),
            "mean_absolute": e.mean(), "max_absolute": e.max(), "blocks": of_blocks.size,
            "outlier_blocks": {str(f): int((of_blocks > f * median).sum()) for f in (1.25, 3.0)}}


def make_weight_cases():
    tensors, cases = make_weights(), []
    for name, kind, block, double_quant in CASES:
        weight = tensors[name]
        case = f"{name}.{kind}.{block}{'.double' if double_quant else ''}"
        parts, values = quantize(weight, kind, block, double_quant)
        tensors |= {f"{case}.{k}": torch.from_numpy(np.ascontiguousarray(v)) for k, v in parts.items()}
        cases.append({"name": case, "weight": name, "type": kind, "block_size": block, "double_quant": double_quant,
                      **measure(weight, values, block)})
    save_file(tensors, HERE / "weights.safetensors")
    (HERE / "weights.json").write_text(json.dumps(cases, indent=1) + "\n")


def make_logits():
    rng = np.random.default_rng(6)
    rows, vocab, hidden = 24, 97, 33
    baseline = rng.normal(0, 3, (rows, vocab)).astype(np.float32)
    other = baseline + rng.normal(0, 0.6, (rows, vocab)).astype(np.float32)
    other[3] = baseline[3]               # the same prediction,
    other[4] = baseline[4] + 7           # and once more
    baseline[5] *= 100                   # one token takes it all
    other[6] = -baseline[6]              # far apart
    targets = rng.integers(0, vocab, rows)
    targets[:8] = baseline[:8].argmax(1)
    stream = rng.normal(0, 1, (rows, hidden)).astype(np.float32)
    stream[0] *= 3000                    # as first tokens are in some models
    other_stream = stream + rng.normal(0, 0.1, (rows, hidden)).astype(np.float32)
    tensors = {"baseline": torch.from_numpy(baseline), "other": torch.from_numpy(other),
               "targets": torch.from_numpy(targets.astype(np.int32)), "stream": torch.from_numpy(stream),
               "other_stream": torch.from_numpy(other_stream)}
    save_file(tensors, HERE / "logits.safetensors")

    p, q = (F.log_softmax(tensors[name].double(), 1) for name in ("baseline", "other"))
    index = torch.from_numpy(targets)
    loss = F.cross_entropy(tensors["other"].double(), index, reduction="none")
    kl = F.kl_div(q, p, log_target=True, reduction="none").sum(1)
    a, b = tensors["stream"].double(), tensors["other_stream"].double()
    expected = {"baseline_loss": F.nll_loss(p, index, reduction="none").tolist(), "loss": loss.tolist(),
                "kl": kl.clamp_min(0).tolist(), "agrees": (p.argmax(1) == q.argmax(1)).tolist(),
                "correct": (q.argmax(1) == index).tolist(), "perplexity": float(loss.mean().exp()),
                "cosine": float(F.cosine_similarity(a, b).mean()),
                "relative_error": float(((b - a).norm(dim=1) / a.norm(dim=1)).mean())}
    (HERE / "logits.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_weight_cases()
    make_logits()
