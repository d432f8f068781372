"""The 4-bit base that quantize_cache keeps, against bitsandbytes: codes and scales bit for bit, and
the folder loaded by Transformers with bitsandbytes on the CPU.

What bitsandbytes' CPU path does differently from its CUDA kernels is compared within stated bounds:
8-bit codes of scales (a lookup table: off by one near thresholds, and 0 is not 127) and the offset
(the mean in fp32, in an order that is not defined).
"""
import json

import bitsandbytes.functional as bnb
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

import engine
import models
import nf4

# Every row a whole number of blocks, which Transformers with bitsandbytes needs on the CPU; blocks
# enough for several nested groups, the last of them short.
WHOLE_ROWS = models.Case(LlamaConfig(
    hidden_size=192, intermediate_size=448, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-5, tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **models.COMMON),
    torch.bfloat16, seed=31)
# Rows of 50 and 70: the last block is short.
ODD_ROWS = models.Case(LlamaConfig(
    hidden_size=50, intermediate_size=70, num_hidden_layers=2, num_attention_heads=5,
    num_key_value_heads=1, head_dim=10, rms_norm_eps=1e-5, tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **models.COMMON),
    torch.float32, seed=32)
DOCUMENTS = [(0, 40), (0, 7)]


def make_cache(name, case, quantization):
    """Runs `eval` with a cache; returns its logits, the cache's folder and the model's tensors."""
    folder = engine.SCRATCH / name
    folder.mkdir()
    models.make(case, folder / "model")
    documents = engine.random_documents(models.VOCAB, DOCUMENTS, 3)
    engine.write_records(folder / "data.jsonl", documents)
    job = f"""model: "{folder}/model" output_dir: "{folder}/out" compute_dtype: FP32 num_threads: 1
        quantization {{ quantize_cache: "{folder}/cache" {quantization} }}
        data {{ format: PRETOKENIZED max_length: 64 }}
        eval {{ file: "{folder}/data.jsonl" logits_file: "{folder}/logits.safetensors" }}"""
    engine.run("eval", job, folder)
    first = load_file(folder / "logits.safetensors")
    engine.run("eval", job, folder)
    again = load_file(folder / "logits.safetensors")
    engine.close(f"{name}: logits from the model and from the cache",
                 [(again[k], first[k]) for k in first], 0)
    found = [p for p in (folder / "cache").iterdir() if (p / "model.safetensors").exists()]
    engine.equal(f"{name}: folders in the cache", len(found), 1)
    return (documents, [first[f"logits.{i}"] for i in range(len(first))], found[0],
            nf4.stored_tensors(folder / "model"))


def linears(stored):
    return {k: w for k, w in stored.items() if k.split(".")[-2] in models.LINEARS}


def check_names(name, cached, stored, double_quant, kind):
    wanted = set(stored)
    for key in linears(stored):
        parts = ["absmax", "quant_map", f"quant_state.bitsandbytes__{kind}"]
        wanted |= {f"{key}.{p}" for p in
                   parts + (["nested_absmax", "nested_quant_map"] if double_quant else [])}
    engine.equal(f"{name}: tensors", sorted(cached), sorted(wanted))
    engine.close(f"{name}: unquantized tensors", [
        (cached[k], w) for k, w in stored.items() if k not in linears(stored)], 0)


def check_nf4(name, cached, stored, double_quant, block):
    codes, scales, eight_bit, nested, offsets, on_cpu, nested_cpu = [], [], [], [], [], [], []
    for key, weight in linears(stored).items():
        packed, absmax = nf4.quantize(weight, block)
        codes.append((cached[key].reshape(-1), torch.from_numpy(packed)))
        if not double_quant:
            scales.append((cached[key + ".absmax"], torch.from_numpy(absmax)))
            continue
        _, state = bnb.quantize_4bit(weight, blocksize=block, quant_type="nf4",
                                     compress_statistics=True)
        ours = json.loads(bytes(cached[f"{key}.quant_state.bitsandbytes__nf4"].tolist()))
        theirs = state.as_dict(packed=False)
        offsets.append((ours.pop("nested_offset"), theirs.pop("nested_offset")))
        engine.equal(f"{name}: {key}: the state", ours, {
            k: (list(v) if k == "shape" else v) for k, v in theirs.items() if k in ours})
        by_rule = nf4.double_quantize(absmax)
        eight_bit.append((cached[key + ".absmax"], torch.from_numpy(by_rule[0])))
        nested.append((cached[key + ".nested_absmax"], torch.from_numpy(by_rule[1])))
        # bitsandbytes' own, as far as the CPU goes.
        nested_cpu.append((cached[key + ".nested_absmax"], state.state2.absmax))
        d = (absmax - by_rule[2]) / by_rule[1][np.arange(absmax.size) // nf4.GROUP]
        difference = (cached[key + ".absmax"].int() - state.absmax.int()).abs()
        on_cpu.append(difference[torch.from_numpy(np.abs(d) >= 3e-5)])
    engine.close(f"{name}: 4-bit codes, bitsandbytes", codes, 0)
    if not double_quant:
        engine.close(f"{name}: scales, bitsandbytes", scales, 0)
        return
    on_cpu = torch.cat(on_cpu)
    engine.report(f"{name}: 8-bit scales, bitsandbytes on the CPU",
                  int(on_cpu.max()) <= 1 and int((on_cpu > 0).sum()) <= 0.01 * on_cpu.numel(),
                  f"{int((on_cpu > 0).sum())} of {on_cpu.numel()} off by one (limit 1 %)")
    engine.close(f"{name}: nested scales, bitsandbytes", nested_cpu, 1e-6, relative=True)
    engine.close(f"{name}: 8-bit scales, the CUDA kernels' rule", eight_bit, 0)
    engine.close(f"{name}: nested scales, the CUDA kernels' rule", nested, 0)
    engine.close(f"{name}: offsets, bitsandbytes", offsets, 1e-6, relative=True)


def check_fp4(name, cached, stored):
    """bitsandbytes' CPU path takes the exact midpoints and another sign of zero."""
    different, total, scales = 0, 0, []
    for key, weight in linears(stored).items():
        packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="fp4",
                                          compress_statistics=False)
        ours = nf4.unpack(cached[key].numpy(), weight.numel())
        theirs = nf4.unpack(packed.numpy(), weight.numel())
        zero = (ours % 8 == 0) & (theirs % 8 == 0)
        different += int(((ours != theirs) & ~zero).sum())
        total += ours.size
        scales.append((cached[key + ".absmax"], state.absmax))
    engine.close(f"{name}: scales, bitsandbytes", scales, 0)
    engine.report(f"{name}: FP4 codes, bitsandbytes on the CPU", different <= 1e-4 * total,
                  f"{different} of {total} differ (limit 0.01 %: CUDA rounds the thresholds)")


def check_transformers(name, folder, stored, documents, wanted):
    """Transformers reads the cache's folder; its linears dequantize to the engine's values."""
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    values = []
    for path, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            dense = bnb.dequantize_4bit(module.weight.data, state).float()
            ours = nf4.dequantized(stored[path + ".weight"])
            values.append((dense, ours.to(state.dtype).float()))
    engine.close(f"{name}: weights that Transformers with bitsandbytes dequantizes", values, 0)
    engine.equal(f"{name}: linears that Transformers holds in 4 bits", len(values),
                 len(linears(stored)))
    # It rounds the dequantized weights to the dtype stored, bf16, so this is coarse.
    largest = max(float(w.abs().max()) for w in wanted)
    engine.close(f"{name}: its logits, over the largest",
                 [(a.float() / largest, b / largest)
                  for a, b in zip(models.logits(model, documents), wanted)], 0.03)


def main():
    documents, logits, folder, stored = make_cache("whole rows, nf4", WHOLE_ROWS, "")
    cached = load_file(folder / "model.safetensors")
    check_names("whole rows, nf4", cached, stored, True, "nf4")
    check_nf4("whole rows, nf4", cached, stored, True, 64)
    check_transformers("whole rows, nf4", folder, stored, documents, logits)
    for name, case, fields, double_quant, block in [
            ("odd rows, nf4", ODD_ROWS, "", True, 64),
            ("odd rows, nf4, plain scales", ODD_ROWS, "bnb_4bit_use_double_quant: false", False, 64),
            ("whole rows, nf4, blocks of 256", WHOLE_ROWS, "block_size: 256", True, 256)]:
        *_, folder, stored = make_cache(name, case, fields)
        cached = load_file(folder / "model.safetensors")
        check_names(name, cached, stored, double_quant, "nf4")
        check_nf4(name, cached, stored, double_quant, block)
    name = "odd rows, fp4"
    *_, folder, stored = make_cache(name, ODD_ROWS,
                                    "bnb_4bit_quant_type: FP4 bnb_4bit_use_double_quant: false")
    cached = load_file(folder / "model.safetensors")
    check_names(name, cached, stored, False, "fp4")
    check_fp4(name, cached, stored)
    engine.finish()


main()
