"""The rivals' training step: a model of which only config.json is there, random weights, adapters on all linears.

Three kinds of rival, the first that Python's packages allow unless --kind asks for one:
  nf4    Transformers + PEFT + bitsandbytes: NF4 with double quantization, what QLoRA users run
  bf16   Transformers + PEFT over a base in bf16
  plain  the modules below, PyTorch alone, over a base in bf16
In all of them the adapters and AdamW's states are bf16, which is faster than the fp32 that PEFT makes of them by
default, attention is PyTorch's scaled_dot_product_attention, AdamW is PyTorch's fused one.
"""

import importlib.util
import json
import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


def has(name):
    return importlib.util.find_spec(name) is not None


def kinds():
    """Those that can run here, the most telling first, and why the others cannot."""
    missing = [name for name in ("transformers", "peft", "bitsandbytes") if not has(name)]
    available, skipped = ["plain"], []
    if "transformers" not in missing and "peft" not in missing:
        available.insert(0, "bf16")
        if not missing:
            available.insert(0, "nf4")
    for kind in ("nf4", "bf16"):
        if kind not in available:
            skipped.append(f"{kind}: Python has no {', no '.join(m for m in missing)}")
    return available, skipped


class LoraLinear(nn.Module):
    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features) * 0.02)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = 2.0

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.a), self.b) * self.scale


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Layer(nn.Module):
    def __init__(self, c, rank):
        super().__init__()
        hidden, inner, self.heads, self.kv_heads = (
            c["hidden_size"], c["intermediate_size"], c["num_attention_heads"], c["num_key_value_heads"])
        self.head = c.get("head_dim") or hidden // self.heads
        eps = c["rms_norm_eps"]

        def linear(inputs, outputs):
            return LoraLinear(nn.Linear(inputs, outputs, bias=False), rank)

        self.q, self.k = linear(hidden, self.heads * self.head), linear(hidden, self.kv_heads * self.head)
        self.v, self.o = linear(hidden, self.kv_heads * self.head), linear(self.heads * self.head, hidden)
        self.gate, self.up, self.down = linear(hidden, inner), linear(hidden, inner), linear(inner, hidden)
        self.before, self.after = Norm(hidden, eps), Norm(hidden, eps)
        normed = c["model_type"].startswith("qwen3")
        self.q_norm = Norm(self.head, eps) if normed else nn.Identity()
        self.k_norm = Norm(self.head, eps) if normed else nn.Identity()

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape

        def rotated(y, heads, norm):
            y = norm(y.view(batch, tokens, heads, self.head)).transpose(1, 2)
            first, second = y.chunk(2, -1)
            return y * cos + torch.cat((-second, first), -1) * sin

        y = self.before(x)
        q, k = rotated(self.q(y), self.heads, self.q_norm), rotated(self.k(y), self.kv_heads, self.k_norm)
        v = self.v(y).view(batch, tokens, self.kv_heads, self.head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        x = x + self.o(y.transpose(1, 2).reshape(batch, tokens, -1))
        y = self.after(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Plain(nn.Module):
    def __init__(self, c, rank):
        super().__init__()
        self.embed = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, rank) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        if c["tie_word_embeddings"]:
            self.head.weight = self.embed.weight
        self.theta, self.checkpointing = c["rope_theta"], False
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name.endswith((".a", ".b"))
            if parameter.dim() == 2 and not parameter.requires_grad:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, input_ids, labels):
        x = self.embed(input_ids)
        size = self.layers[0].head
        frequencies = self.theta ** (-torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size)
        angles = torch.outer(torch.arange(x.shape[1], device=x.device, dtype=torch.float32), frequencies).repeat(1, 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = checkpoint(layer, x, cos, sin, use_reentrant=False) if self.checkpointing else layer(x, cos, sin)
        logits = self.head(self.norm(x))[:, :-1].float()
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))


def quantize_linears(model, device):
    """Every linear layer but the head in NF4."""
    import bitsandbytes as bnb

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or name == "lm_head":
                continue
            layer = bnb.nn.Linear4bit(child.in_features, child.out_features, bias=False,
                                      compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
            layer.weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4",
                                             compress_statistics=True)
            setattr(parent, name, layer.to(device))


class Rival:
    """A model with adapters, ready for steps."""

    def __init__(self, kind, folder, rank, device):
        path = os.path.join(folder, "config.json")
        torch.manual_seed(1)
        self.kind, self.device = kind, device
        torch.set_default_dtype(torch.bfloat16)
        with open(path) as file:
            config = json.load(file)
        self.vocabulary = config["vocab_size"]
        if kind == "plain":
            with torch.device(device):
                self.model = Plain(config, rank)
        else:
            import peft
            import transformers

            with torch.device(device):
                self.model = transformers.AutoModelForCausalLM.from_config(
                    transformers.AutoConfig.from_pretrained(folder), attn_implementation="sdpa")
            self.model.to(torch.bfloat16)
            if kind == "nf4":
                quantize_linears(self.model, device)
            self.model.config.use_cache = False
            lora = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
            self.model = peft.get_peft_model(self.model, lora, autocast_adapter_dtype=False)
            self.model.enable_input_require_grads()
        torch.set_default_dtype(torch.float32)
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=device == "cuda")
        self.loss_model = self.model

    def compile(self):
        self.loss_model = torch.compile(self.model)

    def checkpoint(self, on):
        if self.kind == "plain":
            self.model.checkpointing = on
        elif on:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()

    def step(self, rows, tokens, accumulation):
        ids = (torch.arange(rows * tokens, device=self.device) * 7919 % self.vocabulary).view(rows, tokens)
        for _ in range(accumulation):
            result = self.loss_model(input_ids=ids, labels=ids)
            loss = result if self.kind == "plain" else result.loss
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 0.3)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())
