"""Ten steps with clipping, warmup, a linear schedule and gradient accumulation in FP32, against
PyTorch's AdamW (over PEFT's adapters, or over all weights): losses, gradient norms, rates, weights."""
import json

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

import engine
import models
import nf4

STEPS, WARMUP, ROWS, ACCUMULATION, CLIP, DECAY, BETA2 = 10, 3, 2, 3, 0.1, 0.01, 0.95
# Four steps an epoch: the order must start over twice.
LENGTHS = [((7 * i) % 5, 4 + (11 * i) % 19) for i in range(ROWS * ACCUMULATION * 4)]
SCHEDULES = {"LINEAR": get_linear_schedule_with_warmup, "COSINE": get_cosine_schedule_with_warmup}


def train_here(name, mode, rate, schedule, more):
    folder = engine.SCRATCH / f"{name}-{mode}"
    documents = engine.random_documents(models.VOCAB, LENGTHS, 17)
    engine.write_records(folder / "train.jsonl", documents)
    engine.run("train", f"""
        model: "{folder}/model" mode: {mode} output_dir: "{folder}/out" compute_dtype: FP32 {more}
        training {{ max_steps: {STEPS} warmup_steps: {WARMUP} lr_scheduler_type: {schedule}
            learning_rate: {rate} max_grad_norm: {CLIP} weight_decay: {DECAY} adam_beta2: {BETA2}
            per_device_train_batch_size: {ROWS} gradient_accumulation_steps: {ACCUMULATION}
            optim: ADAMW_32BIT logging_steps: 1 }}
        data {{ train_file: "{folder}/train.jsonl" format: PRETOKENIZED max_length: 64
                shuffle: false }}""", folder)
    lines = (folder / "out/metrics.jsonl").read_text().splitlines()
    state = load_file(folder / f"out/checkpoint-{STEPS}/optimizer.safetensors")
    return documents, [json.loads(line) for line in lines], state


def train_there(model, groups, rate, schedule, documents):
    """The same steps by PyTorch; returns the log in the engine's words."""
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, BETA2), eps=1e-8)
    scheduler = SCHEDULES[schedule](optimizer, WARMUP, STEPS)
    log, position = [], 0
    for _ in range(STEPS):
        batch = [documents[(position + i) % len(documents)] for i in range(ROWS * ACCUMULATION)]
        position += len(batch)
        # The first token of a document has nothing that predicts it.
        count = sum(len(ids) - max(prompt, 1) for ids, prompt in batch)
        total = 0.0
        for ids, prompt in batch:
            nll = F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
            loss = nll[max(prompt, 1) - 1:].sum() / count
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP).item()
        log.append({"loss": total, "grad_norm": norm, "learning_rate": scheduler.get_last_lr()[0]})
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return log, optimizer


def compare(what, found, wanted, parameters, state, optimizer, before):
    engine.equal(f"{what}: steps logged", len(found), STEPS)
    for key, limit in [("loss", 1e-4), ("grad_norm", 1e-3), ("learning_rate", 1e-6)]:
        engine.close(f"{what}: {key} of {STEPS} steps",
                     [(f[key], w[key]) for f, w in zip(found, wanted)], limit, relative=True)
    engine.report(f"{what}: every step was clipped", all(w["grad_norm"] > CLIP for w in wanted),
                  f"norms from {min(w['grad_norm'] for w in wanted):.3g}")
    moved = max(float((p.detach() - before[n]).abs().max()) for n, p in parameters.items())
    engine.close(f"{what}: weights, which moved by up to {moved:.3g}",
                 [(state[n].view(p.shape), p.detach()) for n, p in parameters.items()], 1e-4)
    for ours in ("exp_avg", "exp_avg_sq"):
        largest = max(float(optimizer.state[p][ours].abs().max()) for p in parameters.values())
        engine.close(f"{what}: {ours}, over the largest", [
            (state[f"{n}.{ours}"].view(p.shape) / largest, optimizer.state[p][ours] / largest)
            for n, p in parameters.items()], 1e-3)


def check_adapter(name, mode, schedule, **options):
    folder = engine.SCRATCH / f"{name}-{mode}"
    models.make(models.CASES[name], folder / "model")
    base = models.load(folder / "model")
    torch.manual_seed(5)
    start = get_peft_model(base, LoraConfig(bias="none", task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for key, p in start.named_parameters():
            if ".lora_B." in key:
                p.copy_(0.1 * torch.randn(p.shape))
    start.save_pretrained(folder / "start")
    targets = " ".join(f'target_modules: "{t}"' for t in sorted(options["target_modules"]))
    documents, found, state = train_here(name, mode, 0.004, schedule, f"""
        lora {{ r: {options["r"]} lora_alpha: {options["lora_alpha"]} lora_dropout: 0 {targets}
                init_from: "{folder}/start" }}""")
    base = models.load(folder / "model")
    if mode == "QLORA":
        nf4.quantize_linears(base, nf4.stored_tensors(folder / "model"), models.LINEARS)
    model = PeftModel.from_pretrained(base, folder / "start", is_trainable=True)
    parameters = {n.replace(".default.", ".").removeprefix("base_model.model."): p
                  for n, p in model.named_parameters()
                  if p.requires_grad}
    before = {n: p.detach().clone() for n, p in parameters.items()}
    wanted, optimizer = train_there(
        model, [{"params": list(parameters.values()), "weight_decay": DECAY}], 0.004, schedule,
        documents)
    compare(f"{name} {mode} {schedule}", found, wanted, parameters, state, optimizer, before)


def check_full(name, schedule):
    folder = engine.SCRATCH / f"{name}-FULL"
    models.make(models.CASES[name], folder / "model")
    documents, found, state = train_here(name, "FULL", 0.001, schedule, "")
    model = models.load(folder / "model")
    parameters = dict(model.named_parameters())
    before = {n: p.detach().clone() for n, p in parameters.items()}
    # As Transformers' Trainer: no decay on norms and biases.
    plain = [p for n, p in parameters.items() if p.dim() == 1]
    decayed = [p for n, p in parameters.items() if p.dim() > 1]
    wanted, optimizer = train_there(model, [{"params": decayed, "weight_decay": DECAY},
                                            {"params": plain, "weight_decay": 0.0}], 0.001,
                                    schedule, documents)
    compare(f"{name} FULL {schedule}", found, wanted, parameters, state, optimizer, before)


def main():
    check_adapter("qwen3", "LORA", "LINEAR", r=6, lora_alpha=9, target_modules=models.LINEARS)
    check_adapter("mistral", "QLORA", "COSINE", r=3, lora_alpha=6,
                  target_modules=["q_proj", "o_proj", "gate_proj"])
    check_full("qwen2", "LINEAR")
    engine.finish()


main()
