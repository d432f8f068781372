"""Merged models against PEFT's merge_and_unload: into the stored weights, into what bitsandbytes dequantizes, and in
4 bits again.

PEFT adds scale * (B @ A) in fp32 to a 16-bit weight and rounds once, as the engine does; only the sum over the rank is
taken in another order, so a value may fall on the other side of a rounding: one unit in the last place, seldom.
"""
import json
import subprocess

import bitsandbytes.functional as bnb
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

import engine
import models
import nf4

# Transformers with bitsandbytes on the CPU needs rows of whole blocks.
WHOLE_ROWS = models.Case(LlamaConfig(
    hidden_size=128, intermediate_size=320, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    **models.COMMON), torch.bfloat16, seed=41)

# model, dtype of the adapter, fields of its config: ranks, alphas, scales, targets
ADAPTERS = [
    ("llama", torch.float32, dict(r=8, lora_alpha=16, target_modules=models.LINEARS)),
    ("mistral", torch.float32, dict(r=5, lora_alpha=7, use_rslora=True, target_modules=models.LINEARS)),
    ("qwen2", torch.bfloat16, dict(r=16, lora_alpha=4, target_modules=["q_proj", "down_proj"])),
    ("qwen3", torch.float32, dict(r=3, lora_alpha=9.5, use_rslora=True, target_modules=r".*\.1\..*(k|up)_proj")),
]


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def make_adapter(base, folder, seed, dtype, options):
    """PEFT's own, with random A and B: what it adds is as large as the weights."""
    torch.manual_seed(seed)
    made = get_peft_model(base, LoraConfig(bias="none", task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for key, p in made.named_parameters():
            if ".lora_B." in key:
                p.copy_(0.05 * torch.randn(p.shape))
    for key, module in made.named_modules():
        if key.endswith((".lora_A.default", ".lora_B.default")):
            module.to(dtype)
    made.save_pretrained(folder)


def merge(name, model, adapter, into, compute="BF16"):
    """Runs `merge`; returns the folder and its tensors."""
    folder = engine.SCRATCH / f"{name}.{into}"
    folder.mkdir()
    mode = "LORA" if into == "BASE" else "QLORA"
    engine.write_records(folder / "data.jsonl", engine.random_documents(models.VOCAB, [(0, 40), (3, 12)], 5))
    engine.run("merge", f"""
        model: "{model}" mode: {mode} output_dir: "{folder}/out" compute_dtype: {compute} num_threads: 1
        data {{ format: PRETOKENIZED max_length: 64 }}
        merge {{ adapter: "{adapter}" output: "{folder}/merged" file: "{folder}/data.jsonl" into: {into} accept_loss: true }}
        """, folder)
    return folder / "merged", nf4.stored_tensors(folder / "merged")


def merged_by_peft(base, adapter):
    """Its tensors by name; tied heads, which a file does not repeat, left out."""
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    tied = merged.config.tie_word_embeddings
    return {k: v.detach().clone() for k, v in merged.state_dict().items() if not (tied and k == "lm_head.weight")}


def ordered(tensor):
    """Whole numbers in the order of the values: neighbours differ by 1."""
    kind = torch.int32 if tensor.dtype == torch.float32 else torch.int16
    bits = tensor.contiguous().view(kind).long()
    return torch.where(bits < 0, torch.iinfo(kind).min - bits, bits)


def compare(what, found, wanted, stored, most, share):
    """At most `most` units in the last place apart, `share` of the changed values at all."""
    engine.equal(f"{what}: tensors", sorted(found), sorted(wanted))
    worst = apart = total = 0
    untouched = []
    for key in sorted(set(found) & set(wanted)):
        if found[key].dtype != wanted[key].dtype or found[key].shape != wanted[key].shape:
            engine.report(f"{what}: {key}", False, f"{found[key].dtype} {tuple(found[key].shape)}")
            continue
        difference = (ordered(found[key]) - ordered(wanted[key])).abs()
        if key in stored and torch.equal(wanted[key], stored[key]):
            untouched.append(key)
            most_here = 0
        else:
            most_here = most
            apart += int((difference > 0).sum())
            total += difference.numel()
            worst = max(worst, int(difference.max()))
        if int(difference.max()) > most_here:
            engine.report(f"{what}: {key}", False, f"{int(difference.max())} units in the last place apart")
    engine.report(f"{what}: {total} merged values", total > 0 and worst <= most and apart <= share * total,
                  f"{apart} differ, by at most {worst} units in the last place (limits {share:.3g} of them, {most}); "
                  f"{len(untouched)} tensors untouched")


def check_base(index, name, dtype, options):
    model, adapter = engine.SCRATCH / name, engine.SCRATCH / f"adapter{index}"
    stored = nf4.stored_tensors(model)
    make_adapter(models.load(model), adapter, index, dtype, options)
    what = f"{name} {models.CASES[name].dtype} {options} {dtype}"
    folder, found = merge(f"base{index}", model, adapter, "BASE")
    compare(f"{what}: BASE", found, merged_by_peft(load(model, models.CASES[name].dtype), adapter), stored,
            ULPS[models.CASES[name].dtype], SHARE[models.CASES[name].dtype])
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    engine.equal(f"{what}: keys that Transformers misses or does not know",
                 (sorted(info["missing_keys"]), sorted(info["unexpected_keys"])), ([], []))

    # Into the values of the 4-bit base, in the type that products have them.
    base = models.load(model)
    nf4.quantize_linears(base, stored, models.LINEARS)
    wanted = {k: v.to(models.CASES[name].dtype) for k, v in merged_by_peft(base, adapter).items()}
    _, found = merge(f"dequantized{index}", model, adapter, "DEQUANTIZED", "FP32")
    compare(f"{what}: DEQUANTIZED", found, wanted, stored, ULPS[models.CASES[name].dtype],
            SHARE[models.CASES[name].dtype])


def check_four_bits():
    """A checkpoint in 4 bits, read, dequantized and merged by the libraries alone."""
    model, adapter, work = (engine.SCRATCH / n for n in ("whole_rows", "whole_rows_adapter", "whole_rows_work"))
    models.make(WHOLE_ROWS, model)
    make_adapter(models.load(model), adapter, 9, torch.float32, dict(r=8, lora_alpha=8, target_modules=models.LINEARS))
    work.mkdir()
    engine.run("quantize", f'model: "{model}" output_dir: "{work}" num_threads: 1 data {{ max_length: 64 }}', work)
    quantized = work / "quantized"
    theirs = AutoModelForCausalLM.from_pretrained(quantized, device_map="cpu", dtype=torch.bfloat16).dequantize()
    _, found = merge("four_bits", quantized, adapter, "DEQUANTIZED")
    compare("4-bit checkpoint, dequantized by bitsandbytes: DEQUANTIZED", found, merged_by_peft(theirs, adapter), {},
            ULPS[torch.bfloat16], SHARE[torch.bfloat16])

    # In 4 bits again: by bitsandbytes, of the same 16-bit values; and PEFT's own merge of the 4-bit model.
    folder, again = merge("four_bits", quantized, adapter, "QUANTIZED")
    linears = [k for k in found if k.split(".")[-2] in models.LINEARS]
    engine.close("QUANTIZED: 4-bit codes, bitsandbytes",
                 [(again[k].reshape(-1), torch.from_numpy(nf4.quantize(found[k])[0])) for k in linears], 0)
    merged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(quantized, device_map="cpu", dtype=torch.bfloat16), adapter).merge_and_unload()
    same = total = 0
    for key in linears:
        packed = merged.get_submodule(key.removesuffix(".weight")).weight.data.reshape(-1).numpy()
        codes, count = nf4.unpack(again[key].reshape(-1).numpy(), found[key].numel()), found[key].numel()
        same += int((codes == nf4.unpack(packed, count)).sum())
        total += count
    engine.report("QUANTIZED: 4-bit codes, PEFT's merge of the 4-bit model", same >= 0.99 * total,
                  f"{total - same} of {total} differ (limit 1 %)")


def check_refusals():
    """What would be merged wrongly is not merged at all."""
    source = engine.SCRATCH / "adapter0"
    for key, value in (("rank_pattern", {"q_proj": 2}), ("alpha_pattern", {"q_proj": 2}), ("fan_in_fan_out", True),
                       ("use_dora", True), ("modules_to_save", ["lm_head"]), ("bias", "all")):
        folder = engine.SCRATCH / f"refused_{key}"
        folder.mkdir()
        config = json.loads((source / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {key: value}))
        (folder / "adapter_model.safetensors").write_bytes((source / "adapter_model.safetensors").read_bytes())
        job = folder / "job.textproto"
        job.write_text(f'model: "{engine.SCRATCH}/llama" mode: LORA output_dir: "{folder}/out" '
                       f'data {{ format: PRETOKENIZED }} merge {{ adapter: "{folder}" '
                       f'file: "{engine.SCRATCH}/base0.BASE/data.jsonl" }}')
        done = subprocess.run([engine.BINARY, "merge", str(job)], capture_output=True, text=True)
        engine.report(f"an adapter with {key}", done.returncode == 65 and key in done.stderr
                      and not (folder / "out" / "merged").exists(), done.stderr.strip()[:160])


# Of one rounding to nearest: a value that the other order of a sum moves over a midpoint. In fp32 each of the few
# operations rounds, and where weight and adapter cancel an ulp of the result is a small part of an ulp of them.
ULPS = {torch.bfloat16: 1, torch.float16: 1, torch.float32: 4096}
SHARE = {torch.bfloat16: 1e-3, torch.float16: 5e-3, torch.float32: 1}


def main():
    for name, case in models.CASES.items():
        models.make(case, engine.SCRATCH / name)
    for index, case in enumerate(ADAPTERS):
        check_base(index, *case)
    check_four_bits()
    check_refusals()
    engine.finish()


main()
