"""Writes the golden files of tests/engine/io with the field's own libraries.

Run in this folder with torch, safetensors, peft, transformers and tensorboard installed. Bytes of the
tensors follow `fill`, which the tests repeat.
"""

import json
import os
import struct

import torch
from safetensors.torch import save_file


def fill(name, n):
    return bytes((i * 7 + sum(name.encode())) % 251 for i in range(n))


def tensor(name, dtype, shape, itemsize):
    n = itemsize
    for extent in shape:
        n *= extent
    if n == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(fill(name, n)), dtype=torch.uint8).view(dtype).reshape(shape)


def writer():
    rows = [
        ("z.bool", torch.bool, [3], 1),
        ("b.u8", torch.uint8, [2, 3], 1),
        ("a.u8", torch.uint8, [5], 1),
        ("i8", torch.int8, [1], 1),
        ("e5m2", torch.float8_e5m2, [2], 1),
        ("e4m3", torch.float8_e4m3fn, [3], 1),
        ("e8m0", torch.float8_e8m0fnu, [4], 1),
        ("e4m3fnuz", torch.float8_e4m3fnuz, [5], 1),
        ("e5m2fnuz", torch.float8_e5m2fnuz, [6], 1),
        ("i16", torch.int16, [2], 2),
        ("u16", torch.uint16, [3], 2),
        ("f16", torch.float16, [2, 2], 2),
        ("model.layers.10.w", torch.bfloat16, [4, 3], 2),
        ("model.layers.2.w", torch.bfloat16, [1, 3], 2),
        ("i32", torch.int32, [2], 4),
        ("u32", torch.uint32, [1], 4),
        ("scalar", torch.float32, [], 4),
        ("empty", torch.float32, [0, 4], 4),
        ("empty2", torch.float32, [2, 0], 4),
        ("c64", torch.complex64, [2], 8),
        ("f64", torch.float64, [2], 8),
        ("i64", torch.int64, [1], 8),
        ("u64", torch.uint64, [2], 8),
        ('quote"back\\slash', torch.float32, [1], 4),
        ("\u00e4\u4e2d\U0001f600", torch.float32, [1], 4),
    ]
    save_file({n: tensor(n, d, s, i) for n, d, s, i in rows}, "writer.safetensors",
              metadata={"format": "pt"})
    save_file({}, "empty.safetensors", metadata={"format": "pt"})


def adapter():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=12,
                                         num_hidden_layers=1, num_attention_heads=2,
                                         num_key_value_heads=1))
    config = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.05, target_modules=["v_proj", "q_proj"],
                        task_type="CAUSAL_LM", base_model_name_or_path="org/base")
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    model.save_pretrained("peft_adapter")
    os.remove("peft_adapter/README.md")


def events():
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    with open("events.bin", "wb") as file:
        out = RecordWriter(file)
        out.write(event_pb2.Event(wall_time=1.7e9, file_version="brain.Event:2").SerializeToString())
        out.write(event_pb2.Event(wall_time=1.7e9, step=6, session_log=event_pb2.SessionLog(
            status=event_pb2.SessionLog.START)).SerializeToString())
        value = summary_pb2.Summary.Value
        out.write(event_pb2.Event(wall_time=1.7e9 + 2, step=6, summary=summary_pb2.Summary(value=[
            value(tag="train/loss", simple_value=1.25),
            value(tag="train/learning_rate", simple_value=2e-4)])).SerializeToString())
        out.flush()


if __name__ == "__main__":
    writer()
    adapter()
    events()
