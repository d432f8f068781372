"""An adapter trained here, loaded by PEFT over the same base, gives the logits of `eval`; and an
adapter made by PEFT is gone on from and evaluated."""
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import engine
import models
import nf4

LIMIT = 1e-4
TRAIN = [(5, 20), (0, 17), (11, 3), (2, 40)]
EVAL = [(0, 31), (4, 9), (0, 2), (20, 60)]

# model, mode, fields of `lora`, fields of `quantization`
RUNS = [
    ("llama", "QLORA", 'r: 5 lora_alpha: 12', ""),
    ("llama", "LORA", 'r: 8 lora_alpha: 16 use_rslora: true', ""),
    ("mistral", "QLORA", 'r: 3 lora_alpha: 9 use_rslora: true', ""),
    ("mistral", "LORA", 'r: 4 target_modules: "q_proj" target_modules: "v_proj"', ""),
    ("qwen2", "QLORA", 'r: 6 target_modules: "down_proj" target_modules: "o_proj"',
     "bnb_4bit_use_double_quant: false"),
    ("qwen2", "LORA", 'r: 7 lora_alpha: 3.5', ""),
    ("qwen3", "QLORA", 'r: 16 target_modules_regex: ".*\\\\.1\\\\..*(k|up)_proj" '
     'allow_uneven_targets: true', "block_size: 128"),
    ("qwen3", "LORA", 'r: 2 lora_alpha: 20', ""),
]


def job(model, mode, output, more):
    return (f'model: "{model}" mode: {mode} output_dir: "{output}" compute_dtype: FP32 '
            f"num_threads: 1 {more}\n")


def eval_logits(model, mode, quantization, adapter, data, folder):
    path = folder / "logits.safetensors"
    path.unlink(missing_ok=True)
    more = f'quantization {{ {quantization} }}' if quantization else ""
    adapter = f'adapter: "{adapter}"' if adapter else ""
    engine.run("eval", job(model, mode, folder / "unused", more) +
               f'data {{ format: PRETOKENIZED max_length: 128 }} '
               f'eval {{ file: "{data}" logits_file: "{path}" per_device_eval_batch_size: 3 '
               f'{adapter} }}', folder)
    found = load_file(path)
    return [found[f"logits.{i}"] for i in range(len(found))]


def base_model(name, folder, mode, quantization):
    base = models.load(folder)
    if mode == "QLORA":
        nf4.quantize_linears(base, nf4.stored_tensors(folder), models.LINEARS,
                             double_quant="double_quant: false" not in quantization,
                             block=128 if "128" in quantization else 64)
    return base


def check_trained(index, name, mode, lora, quantization):
    folder = engine.SCRATCH / f"run{index}"
    folder.mkdir()
    model = engine.SCRATCH / name
    engine.write_records(folder / "train.jsonl",
                         engine.random_documents(models.VOCAB, TRAIN, 20 + index))
    documents = engine.random_documents(models.VOCAB, EVAL, 40 + index)
    engine.write_records(folder / "eval.jsonl", documents)
    more = f"quantization {{ {quantization} }}" if quantization else ""
    engine.run("train", job(model, mode, folder / "out", more) + f"""
        lora {{ {lora} lora_dropout: 0 }}
        training {{ max_steps: 4 gradient_accumulation_steps: 2 learning_rate: 0.02
                    lr_scheduler_type: CONSTANT logging_steps: 1 }}
        data {{ train_file: "{folder}/train.jsonl" format: PRETOKENIZED max_length: 128 }}""",
               folder)
    what = f"{name} {mode} {{{lora}}} {{{quantization}}}"
    base = base_model(name, model, mode, quantization)
    without = eval_logits(model, mode, quantization, None, folder / "eval.jsonl", folder)
    engine.close(f"{what}: base logits, Transformers", zip(without, models.logits(base, documents)),
                 LIMIT)
    found = eval_logits(model, mode, quantization, folder / "out", folder / "eval.jsonl", folder)
    adapted = PeftModel.from_pretrained(base, folder / "out").eval()
    wanted = models.logits(adapted, documents)
    engine.close(f"{what}: adapter logits, PEFT", zip(found, wanted), LIMIT)
    # The adapter does something, or the comparison above says nothing.
    moved = max(float((a - b).abs().max()) for a, b in zip(found, without))
    engine.report(f"{what}: the adapter changes the logits", moved > 0.05, f"by up to {moved:.3g}")
    modules = {k.rsplit(".lora_", 1)[0] for k in load_file(folder / "out/adapter_model.safetensors")}
    ours = {f"base_model.model.{m}" for m in
            (k.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
             for k, _ in adapted.named_parameters() if ".lora_A." in k)}
    engine.equal(f"{what}: adapted modules", sorted(modules), sorted(ours))


def check_bf16(name):
    """The default, bf16 products: the adapter is bf16, and PEFT's fp32 logits are near."""
    folder = engine.SCRATCH / "bf16"
    folder.mkdir()
    model = engine.SCRATCH / name
    documents = engine.random_documents(models.VOCAB, EVAL, 80)
    engine.write_records(folder / "eval.jsonl", documents)
    head = (f'model: "{model}" output_dir: "{folder}/out" '
            f'data {{ train_file: "{folder}/eval.jsonl" format: PRETOKENIZED max_length: 128 }} ')
    engine.run("train", head + "lora { r: 8 } training { max_steps: 4 learning_rate: 0.02 "
               "lr_scheduler_type: CONSTANT gradient_accumulation_steps: 2 }", folder)
    path = folder / "logits.safetensors"
    engine.run("eval", head + f'eval {{ file: "{folder}/eval.jsonl" logits_file: "{path}" '
               f'adapter: "{folder}/out" }}', folder)
    found = load_file(path)
    adapted = PeftModel.from_pretrained(base_model(name, model, "QLORA", ""), folder / "out").eval()
    wanted = models.logits(adapted, documents)
    largest = max(float(w.abs().max()) for w in wanted)
    engine.close(f"{name} QLORA bf16 compute: adapter logits, PEFT in fp32, over the largest logit",
                 [(found[f"logits.{i}"] / largest, w / largest) for i, w in enumerate(wanted)], 0.03)
    dtypes = {str(t.dtype) for t in load_file(folder / "out/adapter_model.safetensors").values()}
    engine.equal(f"{name} QLORA bf16 compute: adapter dtype", dtypes, {"torch.bfloat16"})


def check_made_by_peft(index, name, mode, dtype, **options):
    """PEFT's adapter (random A and B) as eval.adapter, and as lora.init_from."""
    folder = engine.SCRATCH / f"peft{index}"
    folder.mkdir()
    model = engine.SCRATCH / name
    documents = engine.random_documents(models.VOCAB, EVAL, 60 + index)
    engine.write_records(folder / "eval.jsonl", documents)
    torch.manual_seed(index)
    made = get_peft_model(models.load(model), LoraConfig(bias="none", task_type="CAUSAL_LM",
                                                         **options))
    with torch.no_grad():
        for key, p in made.named_parameters():
            if ".lora_B." in key:
                p.copy_(0.2 * torch.randn(p.shape))
            if ".lora_" in key:
                p.copy_(p.to(dtype).float())
    for key, module in made.named_modules():
        if key.endswith((".lora_A.default", ".lora_B.default")):
            module.to(dtype)
    made.save_pretrained(folder / "adapter")
    what = f"{name} {mode} {options} {dtype}"
    base = base_model(name, model, mode, "")
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    wanted = models.logits(adapted, documents)
    found = eval_logits(model, mode, "", folder / "adapter", folder / "eval.jsonl", folder)
    engine.close(f"{what}: PEFT's adapter in eval", zip(found, wanted), LIMIT)

    # One step at rate 0: what comes out is what went in.
    targets = " ".join(f'target_modules: "{t}"' for t in sorted(options["target_modules"]))
    engine.run("train", job(model, mode, folder / "out", "") + f"""
        lora {{ r: {options["r"]} lora_alpha: {options["lora_alpha"]} lora_dropout: 0 {targets}
                use_rslora: {str(options.get("use_rslora", False)).lower()}
                init_from: "{folder}/adapter" }}
        training {{ max_steps: 1 gradient_accumulation_steps: 1 warmup_steps: 1 }}
        data {{ train_file: "{folder}/eval.jsonl" format: PRETOKENIZED max_length: 128 }}""",
               folder)
    before = load_file(folder / "adapter/adapter_model.safetensors")
    after = load_file(folder / "out/adapter_model.safetensors")
    engine.equal(f"{what}: keys after init_from", sorted(after), sorted(before))
    # In FP32 compute the adapter is kept and written in fp32.
    engine.close(f"{what}: values after init_from", [(after[k], before[k]) for k in before], 0)


def main():
    for name, case in models.CASES.items():
        models.make(case, engine.SCRATCH / name)
    for index, case in enumerate(RUNS):
        check_trained(index, *case)
    check_bf16("llama")
    check_made_by_peft(0, "llama", "LORA", torch.float32, r=4, lora_alpha=6,
                       target_modules=["q_proj", "up_proj"])
    check_made_by_peft(1, "qwen2", "QLORA", torch.bfloat16, r=9, lora_alpha=4, use_rslora=True,
                       target_modules=models.LINEARS)
    check_made_by_peft(2, "mistral", "QLORA", torch.float16, r=2, lora_alpha=2,
                       target_modules=["down_proj"])
    engine.finish()


main()
