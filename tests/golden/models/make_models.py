"""Makes the golden models beside this file with Transformers, PEFT and PyTorch (see README.md).

Usage: python make_models.py [folder]       (default: the folder of this file)

Everything is seeded: the same versions of the libraries give the same bytes.
"""
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)

VOCAB = 96
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=128,
             rms_norm_eps=1e-5, initializer_range=0.02, attention_dropout=0.0, hidden_act="silu",
             bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)


def config(model_type, architecture, **changes):
    return {"architectures": [architecture], "model_type": model_type, **SIZES, **changes}


def llama(**changes):
    return config("llama", "LlamaForCausalLM", **changes)


# name -> config.json as written. Those with torch_dtype speak Transformers 4, those with dtype 5.
MODELS = {
    # An epsilon large enough to be seen in the logits.
    "llama": llama(torch_dtype="float32", rope_theta=10000.0, rope_scaling=None, rms_norm_eps=1e-3),
    "llama3_tied": llama(
        torch_dtype="bfloat16", rope_theta=500000.0, tie_word_embeddings=True, eos_token_id=[2, 5],
        head_dim=8, rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
    "llama_bias": llama(dtype="float16", attention_bias=True, mlp_bias=True,
                        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
    "llama_linear": llama(torch_dtype="bfloat16", rope_theta=10000.0,
                          rope_scaling={"type": "linear", "factor": 3.0}),
    "llama_yarn": llama(
        dtype="bfloat16", num_key_value_heads=1,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                         "original_max_position_embeddings": 32}),
    "mistral": config("mistral", "MistralForCausalLM", torch_dtype="bfloat16", sliding_window=5,
                      head_dim=12, rope_theta=10000.0),
    # The window is declared but not in use: it must be ignored.
    "qwen2": config("qwen2", "Qwen2ForCausalLM", torch_dtype="bfloat16", rope_theta=1000000.0,
                    use_sliding_window=False, sliding_window=4, max_window_layers=0,
                    rms_norm_eps=1e-6),
    "qwen2_window": config("qwen2", "Qwen2ForCausalLM", dtype="bfloat16", use_sliding_window=True,
                           sliding_window=4, max_window_layers=1, tie_word_embeddings=True,
                           rms_norm_eps=1e-6,
                           layer_types=["full_attention", "sliding_attention"],
                           rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
    "qwen3": config("qwen3", "Qwen3ForCausalLM", dtype="bfloat16", head_dim=16,
                    use_sliding_window=False, sliding_window=None, max_window_layers=2,
                    rms_norm_eps=1e-3, layer_types=["full_attention"] * 2,
                    rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DOCUMENT_LENGTHS = [21, 9, 14]


def make_base(folder, cfg, seed):
    """Writes config.json and model.safetensors; returns the model in fp32, values as stored."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(cfg, indent=2) + "\n")
    stored = DTYPES[cfg.get("torch_dtype") or cfg.get("dtype")]
    hf_config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager",
                                             dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("norm.weight"):
                value = 1.0 + 0.2 * noise
            elif name.endswith(".bias"):
                value = 0.3 * noise
            elif "embed_tokens" in name:
                value = 0.7 * noise
            else:
                value = noise / math.sqrt(p.shape[1])
            # Outliers: what block scales are for.
            if p.dim() == 2 and "embed" not in name:
                value[0, 0] *= 4.0
            tensors[name] = value.to(stored).contiguous()
            p.copy_(tensors[name].float())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    check_reload(folder, model)
    return model


def check_reload(folder, model):
    """What Transformers itself reads from the folder computes the same."""
    again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager",
                                                 dtype=torch.float32).eval()
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits), folder


def target_nll(logits, labels):
    """-log p(labels[i + 1]) at position i; 0 at the last position and where the label is -100."""
    nll = torch.zeros(labels.shape[0])
    nll[:-1] = F.cross_entropy(logits[:-1].float(), labels[1:], reduction="none", ignore_index=-100)
    return nll


def make_models():
    for index, (name, cfg) in enumerate(MODELS.items()):
        model = make_base(OUT / name, cfg, seed=100 + index)
        rng = np.random.RandomState(200 + index)
        documents = [torch.tensor(rng.randint(3, VOCAB, size=n)) for n in DOCUMENT_LENGTHS]
        logits, nll = [], []
        with torch.no_grad():
            for ids in documents:
                out = model(ids[None]).logits[0]
                logits.append(out)
                nll.append(target_nll(out, ids))
        count = sum(n - 1 for n in DOCUMENT_LENGTHS)
        save_file({
            "input_ids": torch.cat(documents).to(torch.int32),
            "document_lengths": torch.tensor(DOCUMENT_LENGTHS, dtype=torch.int32),
            "logits": torch.cat(logits),
            "nll": torch.cat(nll),
            "loss": torch.cat(nll).double().sum().div(count).float().reshape(1),
        }, OUT / name / "expected.safetensors")
        print(f"{name}: loss {torch.cat(nll).sum() / count:.4f}, largest logit "
              f"{torch.cat(logits).abs().max():.2f}")


# --- NF4 with double quantization, by the rule of quant/reference_quantizer.h --------------------

def f32(words):
    return np.array([int(w, 16) for w in words.split()], dtype=np.uint32).view(np.float32)


NF4 = f32("bf800000 bf3239b1 bf066b30 beca32a0 be91a24d be3d353f bdba7871 00000000 "
          "3da2faff 3e24cae3 3e7c04dd 3ead033a 3ee1a4b8 3f1007ab 3f3913b3 3f800000")
THRESHOLDS = (NF4[:-1] + NF4[1:]) * np.float32(0.5)


def dynamic_map():
    """The signed 8-bit map of bitsandbytes, from PyTorch's own linspace."""
    values = [0.0, 1.0]
    for i in range(7):
        boundaries = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        means = (boundaries[:-1] + boundaries[1:]) / 2.0
        scaled = (10 ** (i - 6)) * means
        values += scaled.tolist() + (-scaled).tolist()
    return np.sort(np.array(values, dtype=np.float32))


MAP = dynamic_map()
assert MAP.size == 256 and MAP[127] == 0


def encode_dynamic(x):
    """Nearest entry by a binary search of seven halvings, then a comparison with the neighbour."""
    pivot, upper, lower = 127, 255, 0
    low, high = np.float32(-1.0), np.float32(1.0)
    value = MAP[pivot]
    step = 64
    while step > 0:
        if x > value:
            lower, low = pivot, value
            pivot += step
        else:
            upper, high = pivot, value
            pivot -= step
        value = MAP[pivot]
        step >>= 1
    low, high = MAP[lower], MAP[upper]
    if upper == 255:
        high = np.float32(1.0)
    if lower == 0:
        low = np.float32(-1.0)
    half = np.float32(0.5)
    if x > value:
        return upper if x > np.float32((high + value) * half) else pivot
    return lower if x < np.float32((low + value) * half) else pivot


def quantize(w, block=64, group=256, chunk=4096):
    """fp32 [n] -> codes, absmax codes, nested absmax, offset, dequantized fp32."""
    n = w.size
    blocks = -(-n // block)
    padded = np.zeros(blocks * block, np.float32)
    padded[:n] = w
    parts = padded.reshape(blocks, block)
    absmax = np.abs(parts).max(axis=1)
    assert (absmax > 0).all()
    scaled = parts * (np.float32(1.0) / absmax)[:, None]
    codes = (scaled[:, :, None] > THRESHOLDS).sum(axis=2).astype(np.uint8).reshape(-1)
    assert n % 2 == 0
    packed = (codes[0:n:2] << 4) | codes[1:n:2]

    total = 0.0  # fp64, one after the other within a chunk, then the chunks
    for start in range(0, blocks, chunk):
        part = 0.0
        for value in absmax[start:start + chunk]:
            part += float(value)
        total += part
    offset = np.float32(total / blocks)
    difference = absmax - offset
    absmax_codes = np.zeros(blocks, np.uint8)
    groups = -(-blocks // group)
    nested = np.zeros(groups, np.float32)
    for g in range(groups):
        d = difference[g * group:(g + 1) * group]
        nested[g] = np.abs(d).max()
        inverse = np.float32(1.0) / nested[g]
        absmax_codes[g * group:(g + 1) * group] = [encode_dynamic(x * inverse) for x in d]
    scale = MAP[absmax_codes] * nested[np.arange(blocks) // group] + offset
    weights = (NF4[codes].reshape(blocks, block) * scale[:, None]).astype(np.float32)
    return packed, absmax_codes, nested, offset, weights.reshape(-1)[:n]


# --- a QLoRA step ---------------------------------------------------------------------------------

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Per document: prompt tokens (label -100) and completion tokens. Two documents a micro-batch.
DOCUMENTS = [(5, 12), (3, 7), (9, 4), (2, 15)]
MICRO_BATCH_DOCUMENTS = [2, 2]
QLORA = {"qlora_llama": ("llama3_tied", dict(use_rslora=False)),
         "qlora_qwen3": ("qwen3", dict(use_rslora=True))}


def quantize_linears(model, expected):
    for name, module in model.named_modules():
        if name.split(".")[-1] not in LINEARS:
            continue
        w = module.weight.detach().numpy()
        codes, absmax, nested, offset, values = quantize(w.reshape(-1))
        expected[f"quant.{name}.codes"] = torch.from_numpy(codes)
        expected[f"quant.{name}.absmax"] = torch.from_numpy(absmax)
        expected[f"quant.{name}.nested_absmax"] = torch.from_numpy(nested)
        expected[f"quant.{name}.nested_offset"] = torch.tensor([offset])
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(values.reshape(w.shape)))


def peft_key(name):
    return name.replace(".default.", ".")


def make_qlora():
    for index, (folder_name, (base_name, options)) in enumerate(QLORA.items()):
        folder = OUT / folder_name
        folder.mkdir(parents=True)
        base = AutoModelForCausalLM.from_pretrained(OUT / base_name, attn_implementation="eager",
                                                    dtype=torch.float32).eval()
        expected = {}
        quantize_linears(base, expected)
        torch.manual_seed(300 + index)
        model = get_peft_model(base, LoraConfig(
            r=4, lora_alpha=8, lora_dropout=0.0, target_modules=LINEARS, bias="none",
            task_type="CAUSAL_LM", base_model_name_or_path=base_name, **options))
        trained = {peft_key(n): p for n, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, p in trained.items():
                if ".lora_B." in name:
                    p.copy_(0.1 * torch.randn(p.shape))
        model.eval()
        model.peft_config["default"].base_model_name_or_path = base_name
        model.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink()
        # PEFT writes the targets in the order of a set of strings, which differs from run to run.
        path = folder / "adapter" / "adapter_config.json"
        written = json.loads(path.read_text())
        written["target_modules"] = sorted(written["target_modules"])
        path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")

        rng = np.random.RandomState(400 + index)
        documents = []
        for prompt, completion in DOCUMENTS:
            ids = torch.tensor(rng.randint(3, VOCAB, size=prompt + completion))
            documents.append((ids, torch.cat([torch.full((prompt,), -100), ids[prompt:]])))
        count = sum(c for _, c in DOCUMENTS)

        optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.01)
        losses, norms = [], []
        for step in range(3):
            optimizer.zero_grad()
            loss = 0.0
            for ids, labels in documents:
                part = target_nll(model(ids[None]).logits[0], labels).sum() / count
                part.backward()
                loss += part.item()
            if step == 0:
                expected |= {f"grad.{n}": p.grad.clone() for n, p in trained.items()}
                assert all(p.grad.abs().max() > 0 for p in trained.values())
            norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), 0.3).item())
            losses.append(loss)
            optimizer.step()
        expected |= {f"step3.{n}": p.detach().clone() for n, p in trained.items()}
        expected |= {
            "input_ids": torch.cat([ids for ids, _ in documents]).to(torch.int32),
            "labels": torch.cat([labels for _, labels in documents]).to(torch.int32),
            "document_lengths": torch.tensor([sum(d) for d in DOCUMENTS], dtype=torch.int32),
            "micro_batch_documents": torch.tensor(MICRO_BATCH_DOCUMENTS, dtype=torch.int32),
            "losses": torch.tensor(losses),
            "grad_norms": torch.tensor(norms),
        }
        save_file(expected, folder / "expected.safetensors")
        print(f"{folder_name}: losses {losses}, gradient norms {norms}")


# --- rotary tables --------------------------------------------------------------------------------

def rope_case(head_dim, **rope):
    return llama(hidden_size=head_dim * 2, num_attention_heads=2, head_dim=head_dim,
                 max_position_embeddings=131072, **rope)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
ROPE = {
    "default": rope_case(32, rope_theta=10000.0, rope_scaling=None),
    "theta_absent": rope_case(16),
    "theta_500000": rope_case(64, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    "linear": rope_case(32, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.5}),
    "llama3.1": rope_case(64, rope_theta=500000.0, rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}),
    "llama3.2": rope_case(64, rope_parameters={
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    "llama3_other_bounds": rope_case(32, rope_theta=10000.0, rope_scaling={
        "rope_type": "llama3", "factor": 3.0, "low_freq_factor": 2.0, "high_freq_factor": 16.0,
        "original_max_position_embeddings": 4096}),
    "yarn": rope_case(64, rope_theta=1000000.0, rope_scaling=YARN),
    "yarn_legacy_type": rope_case(64, rope_theta=1000000.0, rope_scaling={
        "type": "yarn", "factor": 2.0, "original_max_position_embeddings": 65536}),
    "yarn_betas": rope_case(32, rope_theta=10000.0, rope_scaling={
        **YARN, "beta_fast": 16, "beta_slow": 2}),
    "yarn_not_truncated": rope_case(32, rope_theta=10000.0, rope_scaling={
        **YARN, "truncate": False}),
    "yarn_mscale": rope_case(32, rope_theta=10000.0, rope_scaling={
        **YARN, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0}),
    "yarn_attention_factor": rope_case(32, rope_theta=10000.0, rope_scaling={
        **YARN, "attention_factor": 1.25}),
    "yarn_original_absent": rope_case(32, rope_theta=10000.0, rope_scaling={
        "rope_type": "yarn", "factor": 4.0}),
    # A base so small that the slow end of the ramp lies behind the last dimension.
    "yarn_clamped": rope_case(16, rope_theta=50.0, rope_scaling={**YARN, "beta_fast": 1000}),
    # A short original context: both ends of the ramp fall on one dimension.
    "yarn_empty_range": rope_case(16, rope_theta=10000.0, rope_scaling={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6}),
}
POSITIONS = [0, 1, 7, 300, 5000]


def make_rope():
    tensors = {"positions": torch.tensor(POSITIONS, dtype=torch.int32)}
    scratch = OUT / "rope_scratch"
    for name, cfg in ROPE.items():
        scratch.mkdir()
        (scratch / "config.json").write_text(json.dumps(cfg))
        hf_config = AutoConfig.from_pretrained(scratch)
        shutil.rmtree(scratch)
        embedding = LlamaRotaryEmbedding(hf_config)
        cos, sin = embedding(torch.zeros(1, dtype=torch.float32), torch.tensor(POSITIONS)[None])
        half = cos.shape[-1] // 2
        tensors[f"{name}.inv_freq"] = embedding.inv_freq.clone()
        tensors[f"{name}.cos"] = cos[0, :, :half].contiguous()
        tensors[f"{name}.sin"] = sin[0, :, :half].contiguous()
    (OUT / "rope_configs.json").write_text(json.dumps(ROPE, indent=1) + "\n")
    save_file(tensors, OUT / "rope_expected.safetensors")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name in [*MODELS, *QLORA]:
        shutil.rmtree(OUT / name, ignore_errors=True)
    make_models()
    make_qlora()
    make_rope()


main()
