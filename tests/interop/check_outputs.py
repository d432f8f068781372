"""What lies in the output folder is read by those who know such folders: trainer_state.json by
Transformers, adapter_config.json by PEFT, the tokenizer's files by AutoTokenizer."""
import json

from peft import LoraConfig
from tokenizers import Tokenizer, decoders
from tokenizers import models as token_models
from tokenizers import pre_tokenizers, trainers
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, TrainerState

import engine
import models

CHAT = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["north", "south", "east", "west", "left", "right"]
TEXTS = ["go north, then turn left 12 times", "Größe 😀 \n\n tab\t<|im_end|> end", "", "  a  b"]


def make_tokenizer(folder):
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [f"go {a}, then turn {b}" for a in WORDS for b in WORDS], trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=SPECIAL, show_progress=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>",
                                   pad_token="<|endoftext|>")
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    return fast


def check(mode, made, folder, best):
    out = folder / f"out-{mode}"
    engine.run("train", f"""
        model: "{folder}/model" mode: {mode} output_dir: "{out}" num_threads: 1
        {'' if mode == 'FULL' else 'lora { r: 3 lora_alpha: 7 lora_dropout: 0.125 use_rslora: true }'}
        training {{ max_steps: 6 gradient_accumulation_steps: 2 logging_steps: 2 eval_steps: 3
                    save_steps: 3 load_best_model_at_end: {str(best).lower()} learning_rate: 1e-3 }}
        data {{ train_file: "{folder}/chat.jsonl" eval_fraction: 0.2 format: MESSAGES
                max_length: 64 }}""", folder)
    for where in (out, out / "checkpoint-3"):
        what = f"{mode} {where.name}"
        path = where / "trainer_state.json"
        # TrainerState takes the keys of its own fields only.
        state = TrainerState.load_from_json(str(path))
        raw = json.loads(path.read_text())
        steps = 3 if where != out else 6
        engine.equal(f"{what}: global_step, max_steps, epoch kept",
                     (state.global_step, state.max_steps, state.epoch),
                     (raw["global_step"], 6, raw["epoch"]))
        if where != out or not best:
            engine.equal(f"{what}: global_step", state.global_step, steps)
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for key in ("loss", "eval_loss", "learning_rate", "grad_norm"):
            logged = {e["step"]: e[key] for e in state.log_history if key in e}
            wanted = {m["step"]: m[key] for m in metrics if key in m and m["step"] <= steps}
            engine.equal(f"{what}: log_history's {key}", logged, wanted)
        found = AutoTokenizer.from_pretrained(where)
        for text in TEXTS:
            engine.equal(f"{what}: ids of {text!r}", found(text)["input_ids"],
                         made(text)["input_ids"])
        chat = [{"role": "user", "content": "go?"}, {"role": "assistant", "content": "north"}]
        engine.equal(f"{what}: chat template", found.apply_chat_template(chat, tokenize=False),
                     made.apply_chat_template(chat, tokenize=False))
        engine.equal(f"{what}: eos and pad", (found.eos_token, found.pad_token),
                     (made.eos_token, made.pad_token))
        if mode == "FULL":
            engine.equal(f"{what}: config's dtype", str(AutoConfig.from_pretrained(where).dtype),
                         "torch.bfloat16")
            continue
        config = LoraConfig.from_pretrained(where)
        engine.equal(f"{what}: adapter_config.json", (
            config.r, config.lora_alpha, config.lora_dropout, config.use_rslora, config.bias,
            config.task_type, sorted(config.target_modules), config.inference_mode,
            config.base_model_name_or_path), (
            3, 7, 0.125, True, "none", "CAUSAL_LM", sorted(models.LINEARS), True,
            str(folder / "model")))
        known = set(LoraConfig().to_dict())
        engine.equal(f"{what}: keys that PEFT doesn't know",
                     sorted(set(json.loads((where / "adapter_config.json").read_text())) - known),
                     [])
    state = TrainerState.load_from_json(str(out / "trainer_state.json"))
    losses = {e["step"]: e["eval_loss"] for e in state.log_history if "eval_loss" in e}
    if best:
        engine.report(f"{mode}: best_metric is one of the evaluation losses",
                      state.best_metric == min(v for s, v in losses.items() if s > 0),
                      f"{state.best_metric} of {losses}")


def main():
    folder = engine.SCRATCH
    case = models.CASES["qwen3"]
    case.config.vocab_size = 320
    models.make(case, folder / "model")
    made = make_tokenizer(folder / "model")
    with open(folder / "chat.jsonl", "w") as file:
        for a in WORDS:
            for b in WORDS:
                file.write(json.dumps({"messages": [
                    {"role": "user", "content": f"turn {b}"},
                    {"role": "assistant", "content": f"go {a}, then turn {b}"}]}) + "\n")
    check("QLORA", made, folder, best=False)
    check("LORA", made, folder, best=True)
    check("FULL", made, folder, best=False)
    engine.finish()


main()
