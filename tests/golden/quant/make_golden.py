"""Writes the golden data of this folder with the real bitsandbytes (CPU build).

    pip install torch bitsandbytes==0.50.2 numpy
    python make_golden.py

Files, all little-endian:
  maps.bin    create_dynamic_map(signed=True), then (signed=False): 256 fp32 each.
  halves.bin  2048 fp32 bit patterns (u32), then their bf16 (u16), then their fp16 (u16), by torch.
  cases.txt   one line a case: name type block_size double_quant n dtype seed zero_every
  cases.bin   the cases of cases.txt in order, each:
                seed 0 only: the input, n fp32
                codes, (n+1)/2 bytes
                double_quant 0: absmax, one fp32 a block
                double_quant 1: absmax, one byte a block; nested_absmax, one fp32 a group; offset
                the dequantized tensor: n values, fp32, or u16 of bf16 or fp16, as dtype says
              Inputs with a seed are computed (`generated` below), and rounded to dtype.

What bitsandbytes' CPU build does differently from its CUDA kernels, so that the tests must not
expect it: codes of all-zero blocks, FP4 codes near a threshold and the sign of its zeros, 8-bit
codes (off by one at times).
"""

import pathlib

import bitsandbytes.functional as bnb
import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def generated(n, seed, block_size, zero_every):
    """Triangular noise, exact in fp32; block b times 1 + b % 5, or 0 if zero_every divides b+1."""
    x = (np.arange(1, n + 1, dtype=np.uint64) * 0x9E3779B9 + seed * 0x85EBCA6B) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    noise = (x & 0xFFFF).astype(np.int64) + (x >> 16).astype(np.int64) - 65535
    block = np.arange(n) // block_size
    noise = noise * (1 + block % 5)
    if zero_every:
        noise[(block + 1) % zero_every == 0] = 0
    return noise.astype(np.float32) * np.float32(2.0**-22)


def tie_block(thresholds, scale):
    """64 weights of absmax `scale`, a power of two: each threshold and its neighbours, scaled."""
    t = np.array(thresholds, dtype=np.float32)
    around = np.concatenate([t, np.nextafter(t, np.float32(-2)), np.nextafter(t, np.float32(2))])
    block = np.zeros(64, dtype=np.float32)
    block[: len(around)] = around
    block[63] = -1.0
    return block * np.float32(scale)


def write_case(out, listing, name, kind, block_size, double_quant, dtype, w, seed=0, zero_every=0):
    tensor = torch.from_numpy(w).to(DTYPES[dtype])
    n = tensor.numel()
    codes, state = bnb.quantize_4bit(
        tensor, blocksize=block_size, quant_type=kind, compress_statistics=double_quant
    )
    restored = bnb.dequantize_4bit(codes, state).reshape(-1)
    assert restored.dtype == DTYPES[dtype] and restored.numel() == n
    if seed == 0:
        out.write(w.astype("<f4").tobytes())
    out.write(codes.numpy().astype(np.uint8).tobytes())
    if double_quant:
        assert state.state2.blocksize == 256
        out.write(state.absmax.numpy().astype(np.uint8).tobytes())
        out.write(state.state2.absmax.numpy().astype("<f4").tobytes())
        out.write(np.float32(state.offset.item()).tobytes())
    else:
        out.write(state.absmax.numpy().astype("<f4").tobytes())
    if dtype == "fp32":
        out.write(restored.numpy().astype("<f4").tobytes())
    else:
        out.write(restored.view(torch.int16).numpy().astype("<i2").tobytes())
    row = (name, kind, block_size, int(double_quant), n, dtype, seed, zero_every)
    listing.write(" ".join(map(str, row)) + "\n")


def write_cases():
    nf4 = bnb.get_4bit_type("nf4", device="cpu").numpy()
    midpoints = (nf4[:-1] + nf4[1:]) / np.float32(2)
    with open(HERE / "cases.bin", "wb") as out, open(HERE / "cases.txt", "w") as listing:
        ties = np.concatenate([tie_block(midpoints, s) for s in (1.0, 2.0**-6, 8.0)])
        write_case(out, listing, "nf4_ties", "nf4", 64, False, "fp32", ties)

        seed = 1
        dtypes = ["bf16", "fp16", "fp32"]
        for n in (1, 2, 3, 31, 63, 64, 65, 127, 129, 1001):
            w = generated(n, seed, 64, 0)
            write_case(out, listing, f"nf4_n{n}", "nf4", 64, False, dtypes[seed % 3], w, seed)
            seed += 1
        for kind in ("nf4", "fp4"):
            for block_size in (32, 64, 128, 256, 512, 1024, 2048, 4096):
                n = block_size + block_size // 2 + 5
                dtype = "fp32" if block_size <= 128 else dtypes[seed % 2]
                w = generated(n, seed, block_size, 0)
                name = f"{kind}_block{block_size}"
                write_case(out, listing, name, kind, block_size, False, dtype, w, seed)
                seed += 1
        w = generated(9 * 64 + 7, seed, 64, 3)
        write_case(out, listing, "nf4_zero_blocks", "nf4", 64, False, "bf16", w, seed, 3)
        seed += 1
        doubled = ((1, "fp32"), (3, "fp16"), (255, "bf16"), (257, "bf16"), (520, "bf16"))
        for blocks, dtype in doubled:
            n = blocks * 32 - 9
            zero_every = 50 if blocks > 256 else 0
            w = generated(n, seed, 32, zero_every)
            name = f"nf4_double_{blocks}"
            write_case(out, listing, name, "nf4", 32, True, dtype, w, seed, zero_every)
            seed += 1
        w = generated(20 * 64 + 3, seed, 64, 0)
        write_case(out, listing, "fp4_double_21", "fp4", 64, True, "bf16", w, seed)


def write_halves():
    specials = [
        0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x00000001, 0x807FFFFF,
        0x7F7FFFFF, 0x7F7F7FFF, 0x7F7F8000, 0x3F808000, 0x3F818000, 0x3F808001,
        0x3F807FFF, 0x477FE000, 0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001,
        0x32FFFFFF, 0x387FC000, 0x387FE000, 0x38800000, 0x3F801000, 0x3F803000,
        0x00008000, 0x00018000, 0x33800000, 0x33C00000, 0x34200000, 0xB3C00001,
    ]
    rng = np.random.default_rng(7)
    count = 2048 - len(specials)
    bits = rng.integers(0, 2**32, size=count, dtype=np.uint64).astype(np.uint32)
    # Half of them in the range of fp16; of these half lie midway between two fp16 or bf16 values.
    near = np.arange(count) % 2 == 0
    exponent = rng.integers(100, 145, size=count).astype(np.uint32)
    bits = np.where(near, (bits & 0x807FFFFF) | (exponent << 23), bits)
    bits = np.where(np.arange(count) % 8 == 0, (bits & 0xFFFFE000) | 0x1000, bits)
    bits = np.where(np.arange(count) % 8 == 2, (bits & 0xFFFF0000) | 0x8000, bits)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    bits = np.where(nan, bits & 0xBFFFFFFF, bits)
    bits = np.concatenate([np.array(specials, dtype=np.uint32), bits.astype(np.uint32)])
    values = torch.from_numpy(bits.view(np.float32))
    with open(HERE / "halves.bin", "wb") as out:
        out.write(bits.astype("<u4").tobytes())
        out.write(values.to(torch.bfloat16).view(torch.int16).numpy().astype("<i2").tobytes())
        out.write(values.to(torch.float16).view(torch.int16).numpy().astype("<i2").tobytes())


def write_maps():
    with open(HERE / "maps.bin", "wb") as out:
        for signed in (True, False):
            out.write(bnb.create_dynamic_map(signed=signed).numpy().astype("<f4").tobytes())


if __name__ == "__main__":
    write_maps()
    write_halves()
    write_cases()
