"""Tiny models of each family, made by Transformers, in shapes that the golden data hasn't."""
import math
from dataclasses import dataclass

import torch
from transformers import (AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config,
                          Qwen3Config)
from transformers.utils import logging

logging.disable_progress_bar()

VOCAB = 173
COMMON = dict(vocab_size=VOCAB, max_position_embeddings=192, attention_dropout=0.0, bos_token_id=1,
              eos_token_id=2, attn_implementation="eager")


@dataclass
class Case:
    config: object
    dtype: torch.dtype
    shard: str = "1GB"
    seed: int = 0


# Rows are no whole number of 64-blocks: blocks run across rows.
CASES = {
    # head_dim 24 where hidden / heads is 16; three query heads per KV head; shards of 60 kB.
    "llama": Case(LlamaConfig(
        hidden_size=96, intermediate_size=136, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=24, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, **COMMON),
        torch.bfloat16, shard="60KB", seed=11),
    "mistral": Case(MistralConfig(
        hidden_size=80, intermediate_size=112, num_hidden_layers=2, num_attention_heads=5,
        num_key_value_heads=1, head_dim=20, sliding_window=9, rms_norm_eps=1e-6,
        tie_word_embeddings=False, **COMMON),
        torch.float16, seed=12),
    "qwen2": Case(Qwen2Config(
        hidden_size=72, intermediate_size=104, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=3, rms_norm_eps=1e-6, tie_word_embeddings=True, **COMMON),
        torch.bfloat16, seed=13),
    "qwen3": Case(Qwen3Config(
        hidden_size=64, intermediate_size=152, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=40, rms_norm_eps=1e-6, tie_word_embeddings=True, **COMMON),
        torch.float32, shard="90KB", seed=14),
}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make(case, folder):
    """Saves a random model with Transformers' own writer; values spread enough to be seen."""
    model = AutoModelForCausalLM.from_config(case.config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("norm.weight"):
                p.copy_(1.0 + 0.2 * noise)
            elif name.endswith(".bias"):
                p.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                # Tied to the output head: logits of size 1 for hidden states of norm sqrt(hidden).
                p.copy_(noise / math.sqrt(p.shape[1]) if case.config.tie_word_embeddings else noise)
            else:
                p.copy_(noise / math.sqrt(p.shape[1]))
    model.to(case.dtype).save_pretrained(folder, max_shard_size=case.shard)


def load(folder):
    """The model in fp32, values as stored, without dropout."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                attn_implementation="eager").eval()


def logits(model, documents):
    """[tokens, vocab] of each document, each alone."""
    with torch.no_grad():
        return [model(ids[None]).logits[0] for ids, _ in documents]
