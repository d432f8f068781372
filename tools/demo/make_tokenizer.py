"""Trains the demo base's tokenizer: byte-level BPE of 512 tokens, digits one by one.

Usage: make_demo_data corpus 20000 1 | python make_tokenizer.py base/
Needs the package tokenizers (0.22); its output is committed, so neither the demo nor the base's training does.
"""
import json
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"

folder = Path(sys.argv[1])
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(PATTERN), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=[BEGIN, END], show_progress=False,
                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
tokenizer.train_from_iterator((json.loads(line)["text"] for line in sys.stdin), trainer)
tokenizer.post_processor = processors.TemplateProcessing(
    single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B",
    special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))])
folder.mkdir(parents=True, exist_ok=True)
tokenizer.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps(
    {"bos_token": BEGIN, "eos_token": END, "model_max_length": 512,
     "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")
