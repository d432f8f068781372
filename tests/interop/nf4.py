"""Base weights replaced by their 4-bit values: codes and block scales from bitsandbytes.

bitsandbytes on the CPU gives the NF4 codes and the fp32 block scales that its CUDA kernels give.
Two of its CPU paths do not, and are done here instead: the 8-bit code of the scales (a lookup of
65,536 bins where CUDA searches the nearest entry) and dequantize_4bit (wrong where a row is no
whole number of blocks).
"""
import bitsandbytes.functional as bnb
import numpy as np
import torch

NF4 = bnb.get_4bit_type("nf4", device="cpu").float().numpy()
DYNAMIC = bnb.create_dynamic_map().float().numpy()
GROUP = 256


def nearest(x):
    """Index of the nearest entry of the dynamic map."""
    middle = (DYNAMIC[:-1] + DYNAMIC[1:]) * np.float32(0.5)
    return np.searchsorted(middle, x, side="left").astype(np.uint8)


def double_quantize(absmax):
    """fp32 [blocks] -> 8-bit codes, nested absmax per group of 256, offset."""
    offset = np.float32(absmax.astype(np.float64).sum() / absmax.size)
    d = (absmax - offset).astype(np.float32)
    codes, nested = [], []
    for begin in range(0, d.size, GROUP):
        part = d[begin:begin + GROUP]
        nested.append(np.abs(part).max())
        codes.append(nearest(part * (np.float32(1) / nested[-1])))
    return np.concatenate(codes), np.array(nested, np.float32), offset


def scales(codes, nested, offset):
    """Back to fp32 [blocks]: two rounded operations, no fused multiply-add."""
    return DYNAMIC[codes] * nested[np.arange(codes.size) // GROUP] + offset


def unpack(packed, count):
    """One code per weight; the first of a pair lies in the high nibble."""
    packed = packed.reshape(-1)
    return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]


def quantize(weight, block=64):
    """Torch tensor -> packed codes [bytes], absmax fp32 [blocks], by bitsandbytes itself."""
    packed, state = bnb.quantize_4bit(weight.contiguous(), blocksize=block, quant_type="nf4",
                                      compress_statistics=False)
    return packed.reshape(-1).numpy(), state.absmax.float().numpy()


def dequantized(weight, double_quant=True, block=64):
    """The fp32 values that a 4-bit linear with this weight multiplies by."""
    packed, absmax = quantize(weight, block)
    if double_quant:
        absmax = scales(*double_quantize(absmax))
    codes = unpack(packed, weight.numel())
    values = NF4[codes] * np.repeat(absmax, block)[:codes.size]
    return torch.from_numpy(values.astype(np.float32)).reshape(weight.shape)


def quantize_linears(model, stored, names, **options):
    """Replaces the weights of `names` in an fp32 model; `stored` holds them in their own dtype."""
    with torch.no_grad():
        for path, module in model.named_modules():
            if path.split(".")[-1] in names:
                module.weight.copy_(dequantized(stored[path + ".weight"], **options))


def stored_tensors(folder):
    """Every tensor of a model folder, in the dtype it is stored in."""
    from safetensors.torch import load_file
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors
