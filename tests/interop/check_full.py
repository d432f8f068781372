"""What mode FULL writes is a model that Transformers loads, with the engine's own logits."""
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import engine
import models

LIMIT = 1e-4
DOCUMENTS = [(0, 25), (6, 30), (0, 3)]


def check(index, name):
    folder = engine.SCRATCH / f"{name}-run"
    folder.mkdir()
    model, out = engine.SCRATCH / name, folder / "out"
    models.make(models.CASES[name], model)
    documents = engine.random_documents(models.VOCAB, DOCUMENTS, 100 + index)
    engine.write_records(folder / "data.jsonl", documents)
    head = (f"mode: FULL compute_dtype: FP32 num_threads: 1 "
            f'data {{ train_file: "{folder}/data.jsonl" format: PRETOKENIZED max_length: 64 }} ')
    engine.run("train", head + f'model: "{model}" output_dir: "{out}" training {{ max_steps: 3 '
               "learning_rate: 0.003 gradient_accumulation_steps: 1 lr_scheduler_type: CONSTANT }",
               folder)
    path = folder / "logits.safetensors"
    engine.run("eval", head + f'model: "{out}" output_dir: "{folder}/unused" '
               f'eval {{ file: "{folder}/data.jsonl" logits_file: "{path}" }}', folder)
    found = load_file(path)
    trained, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        engine.equal(f"{name}: {kind} in Transformers", sorted(info[kind]), [])
    wanted = models.logits(trained.eval(), documents)
    engine.close(f"{name}: logits of the trained model",
                 [(found[f"logits.{i}"], w) for i, w in enumerate(wanted)], LIMIT)
    before = models.load(model)
    after = dict(trained.named_parameters())
    still = [n for n, p in before.named_parameters() if torch.equal(p, after[n])]
    engine.equal(f"{name}: parameters that did not move", still, [])


def main():
    for index, name in enumerate(models.CASES):
        check(index, name)
    engine.finish()


main()
