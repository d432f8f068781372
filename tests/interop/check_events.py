"""Event files, read by TensorBoard's own reader: tags, steps and values are those of metrics.jsonl."""
import json

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import engine
import models

TRAIN_TAGS = {"loss": "train/loss", "learning_rate": "train/learning_rate",
              "grad_norm": "train/grad_norm", "epoch": "train/epoch"}
EVAL_TAGS = {"eval_loss": "eval/loss", "eval_perplexity": "eval/perplexity",
             "eval_mean_token_accuracy": "eval/mean_token_accuracy"}
SPEED_TAGS = {"speed/tokens_per_second", "speed/share_of_light"}


def check(folder, what):
    reader = EventAccumulator(str(folder / "out/runs"), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    series = {}
    for tag in reader.Tags()["scalars"]:
        series[tag] = {e.step: e.value for e in reader.Scalars(tag)}
    for tag in reader.Tags()["tensors"]:
        series[tag] = {e.step: float(np.asarray(e.tensor_proto.float_val or e.tensor_proto.
                                                double_val).reshape(-1)[0])
                       for e in reader.Tensors(tag)}
    wanted = {}
    for line in (folder / "out/metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        tags = TRAIN_TAGS if "loss" in record else EVAL_TAGS
        for key, tag in tags.items():
            wanted.setdefault(tag, {})[record["step"]] = record[key]
    engine.equal(f"{what}: tags", sorted(set(series) - SPEED_TAGS), sorted(wanted))
    engine.equal(f"{what}: speed tags", sorted(SPEED_TAGS & set(series)), sorted(SPEED_TAGS))
    for tag, points in wanted.items():
        engine.equal(f"{what}: steps of {tag}", sorted(series.get(tag, {})), sorted(points))
        # Events hold fp32.
        engine.close(f"{what}: values of {tag}",
                     [(series[tag][s], float(np.float32(v))) for s, v in points.items()
                      if s in series.get(tag, {})], 0)


def main():
    folder = engine.SCRATCH
    models.make(models.CASES["qwen2"], folder / "model")
    engine.write_records(folder / "train.jsonl", engine.random_documents(
        models.VOCAB, [(2, 9 + i) for i in range(12)], 7))
    engine.write_records(folder / "eval.jsonl", engine.random_documents(
        models.VOCAB, [(0, 12), (3, 8)], 8))

    def job(steps):
        return f"""model: "{folder}/model" output_dir: "{folder}/out" num_threads: 1
            lora {{ r: 4 }}
            training {{ max_steps: {steps} gradient_accumulation_steps: 2 logging_steps: 2
                        eval_steps: 3 save_steps: 4 learning_rate: 1e-3
                        lr_scheduler_type: CONSTANT }}
            data {{ train_file: "{folder}/train.jsonl" eval_file: "{folder}/eval.jsonl"
                    format: PRETOKENIZED max_length: 64 }}"""

    engine.run("train", job(11), folder)
    check(folder, "one run")

    # The same, cut back to step 4 and resumed: two event files, one history.
    import shutil
    for name in ("checkpoint-8", "checkpoint-11"):
        shutil.rmtree(folder / "out" / name)
    engine.run("train", job(11), folder)
    engine.equal("resumed run: event files", len(list((folder / "out/runs").iterdir())), 2)
    check(folder, "resumed run")
    engine.finish()


main()
