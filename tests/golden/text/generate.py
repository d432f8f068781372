#!/usr/bin/env python3
"""Writes the tokenizers and cases in this folder with the real libraries.

pip install tokenizers==0.23.3 transformers==5.23.0 jinja2
The ids, decoded texts, chat renderings and masks are theirs; the engine computes nothing here.
<name>.tokenizer.json   a small tokenizer of tokenizer_files.py
<name>.cases.jsonl      {"text", "ids", "add" (with BOS/EOS), "plain" (control tokens as text),
                        "decoded" (only where it differs from the text), "skipped" (the same
                        without special tokens)}
chat.jsonl              {"format", "tokenizer", "messages", "generation", "ids", "trained",
                        "whole" (equal to the whole conversation rendered and tokenized)}
"""

import json
import os
import random

from chat_cases import chat_cases
from texts import TEXTS, fuzz
from tokenizer_files import tokenizer_files
from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))

# Characters whose normalization is newer than the library's tables (Unicode 12).
NEWER_THAN_LIBRARY_NFC = {"\U00016d40"}


def cases(name, tok, texts, rng):
    out = []
    uses_nfc = name in ("qwen2", "flags", "behaviours")
    for text in texts:
        if uses_nfc and NEWER_THAN_LIBRARY_NFC & set(text):
            continue
        add, plain = rng.random() < 0.3, rng.random() < 0.3
        tok.encode_special_tokens = plain
        ids = tok.encode(text, add_special_tokens=add).ids
        case = dict(text=text, ids=ids)
        if add:
            case["add"] = True
        if plain:
            case["plain"] = True
        decoded, skipped = tok.decode(ids, skip_special_tokens=False), tok.decode(ids)
        if decoded != text:
            case["decoded"] = decoded
        if skipped != decoded:
            case["skipped"] = skipped
        out.append(case)
    return out


def dump(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main():
    toks = {}
    for index, (name, root) in enumerate(tokenizer_files().items()):
        text = dump(root)
        with open(os.path.join(HERE, name + ".tokenizer.json"), "w", newline="\n") as out:
            out.write(text + "\n")
        toks[name] = Tokenizer.from_str(text)
        lines = cases(name, toks[name], TEXTS + fuzz(50, 1000 + index), random.Random(index))
        with open(os.path.join(HERE, name + ".cases.jsonl"), "w", newline="\n") as out:
            out.writelines(dump(case) + "\n" for case in lines)
        print(name, len(root["model"]["vocab"]), "tokens,", len(lines), "cases")
    with open(os.path.join(HERE, "chat.jsonl"), "w", newline="\n") as out:
        lines = chat_cases(toks)
        out.writelines(dump(case) + "\n" for case in lines)
        print(
            "chat",
            len(lines),
            "cases,",
            sum(c["whole"] for c in lines),
            "equal to the whole rendering",
        )


if __name__ == "__main__":
    main()
