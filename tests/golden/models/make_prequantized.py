"""Makes prequantized/, 4-bit checkpoints written by Transformers with bitsandbytes; README.md there describes the files.

Usage: python make_prequantized.py [folder]       (default: prequantized/ beside this file)

Everything is seeded: the same versions of the libraries (torch 2.15.0, transformers 5.23.0, bitsandbytes 0.50.2, on the
CPU) give the same bytes.
"""
import hashlib
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "prequantized"
torch.set_num_threads(1)

CONFIG = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32,
          "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
          "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 128,
          "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "dtype": "bfloat16",
          "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0}
CASES = {"nf4_double": dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
         "fp4_plain": dict(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False)}


def make_base(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    generator = torch.Generator().manual_seed(11)
    tensors = {}
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1.0 + 0.2 * noise
        else:
            value = noise / math.sqrt(p.shape[-1])
        tensors[name] = value.to(torch.bfloat16).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def make_case(base, folder, options):
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **options)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization,
                                                 dtype=torch.bfloat16, device_map="cpu")
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    expected = {}
    for name, p in sorted(model.named_parameters()):
        if hasattr(p, "quant_state"):
            # Flat: the CPU build of 0.50.2 takes the wrong scales for rows that are not whole blocks. Adding 0 makes
            # -0, whose sign differs between its builds, +0.
            p.quant_state.shape = torch.Size([p.quant_state.shape.numel()])
            w = bnb.dequantize_4bit(p.data, p.quant_state) + 0.0
            assert w.dtype == torch.bfloat16
            data = w.contiguous().view(torch.int16).numpy().tobytes()
            expected[name] = hashlib.sha256(data).hexdigest()
    (folder / "dequantized.json").write_text(json.dumps(expected, indent=1) + "\n")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        make_base(base)
        for name, options in CASES.items():
            make_case(base, OUT / name, options)


main()
