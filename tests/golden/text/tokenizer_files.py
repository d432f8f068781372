"""Small tokenizers of every kind that the engine reads, trained on a page of text."""

import copy
import json

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(
    r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{M}\p{N}]+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PREFIX = r"[^\r\n\p{L}\p{N}]?"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = PREFIX + UPPER + "*" + LOWER + "+|" + PREFIX + UPPER + "+" + LOWER + r"*|\p{N}" + TAIL
SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    PREFIX
    + UPPER
    + "*"
    + LOWER
    + "+"
    + SUFFIX
    + "|"
    + PREFIX
    + UPPER
    + "+"
    + LOWER
    + "*"
    + SUFFIX
    + r"|\p{N}{1,3}"
    + TAIL
)

TRAINING_TEXT = [
    "The quick brown fox doesn't jump over the lazy dog; it's the dog that'll jump over the fox.",
    "Natalia sold clips to 48 of her friends in April, "
    "and then she sold half as many clips in May.",
    "How many clips did Natalia sell altogether in April and May? 48 + 24 = <<48+24=72>>72 clips.",
    "for (int i = 0; i < 100; ++i) {\n    sum += values[i];\n    if (sum > 1000) return;\n}\n\n",
    "Der schnelle braune Fuchs springt über den faulen Hund. Größe, Straße, Äpfel, Öl.",
    "Le café est très bon, n'est-ce pas ? L'été à la plage, où il fait très chaud.",
    "Быстрая коричневая лиса прыгает через ленивую собаку. Привет, мир! Это просто текст.",
    "天地玄黄宇宙洪荒日月盈昃辰宿列张。你好,世界!这是一个测试。",
    "こんにちは世界。これはテストです。한국어 텍스트도 조금 있습니다.",
    "नमस्ते दुनिया। यह एक परीक्षण है। สวัสดีชาวโลก مرحبا بالعالم שלום עולם",
    "I'VE SEEN THAT HE'LL GO, BUT WE'RE NOT SURE THEY'D SAY \"YES\". camelCaseWords XMLHttpRequest",
    "    indented\n\ttabbed\r\nwindows line\r\n\r\n\r\ntwo blank lines   trailing   \n",
    "1234567890 3.14159 1,000,000 2024-11-23 12:34:56 0xFF 1e-5 100% $5.99 #hash @user a_b_c",
    "https://example.com/path/to/page?query=value&other=1#fragment user@example.com",
] * 4


def added(tid, content, **flags):
    token = dict(
        id=tid,
        content=content,
        single_word=False,
        lstrip=False,
        rstrip=False,
        normalized=False,
        special=True,
    )
    token.update(flags)
    return token


def base(model, **parts):
    root = dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=[],
        normalizer=None,
        pre_tokenizer=None,
        post_processor=None,
        decoder=None,
    )
    root.update(parts)
    root["model"] = dict(
        type="BPE",
        dropout=None,
        unk_token=None,
        continuing_subword_prefix=None,
        end_of_word_suffix=None,
        fuse_unk=False,
        byte_fallback=False,
        ignore_merges=False,
    )
    root["model"].update(model)
    return root


def train(pre_tokenizer, vocab_size, alphabet=()):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizer
    tok.train_from_iterator(
        TRAINING_TEXT,
        trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=list(alphabet), show_progress=False
        ),
    )
    model = json.loads(tok.to_str())["model"]
    return model["vocab"], model["merges"]


def byte_level(pattern, vocab_size=480):
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return train(split, vocab_size, pre_tokenizers.ByteLevel.alphabet())


def byte_level_json(pattern, specials, normalizer=None, bos=None, old_merges=False, **model):
    vocab, merges = byte_level(pattern)
    n = len(vocab)
    tokens = [added(n + i, c) for i, c in enumerate(specials)]
    processor = dict(type="ByteLevel", add_prefix_space=True, trim_offsets=False, use_regex=True)
    if bos:
        processor = dict(
            type="Sequence", processors=[processor, template(bos, n + specials.index(bos))]
        )
    return base(
        dict(vocab=vocab, merges=[" ".join(m) for m in merges] if old_merges else merges, **model),
        added_tokens=tokens,
        normalizer=normalizer,
        pre_tokenizer=dict(
            type="Sequence",
            pretokenizers=[
                dict(type="Split", pattern=dict(Regex=pattern), behavior="Isolated", invert=False),
                dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False),
            ],
        ),
        post_processor=processor,
        decoder=dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
    )


def template(bos, bos_id, eos=None, eos_id=None):
    single = [dict(SpecialToken=dict(id=bos, type_id=0)), dict(Sequence=dict(id="A", type_id=0))]
    tokens = {bos: dict(id=bos, ids=[bos_id], tokens=[bos])}
    if eos:
        single.append(dict(SpecialToken=dict(id=eos, type_id=0)))
        tokens[eos] = dict(id=eos, ids=[eos_id], tokens=[eos])
    return dict(
        type="TemplateProcessing",
        single=single,
        pair=single + [dict(Sequence=dict(id="B", type_id=1))],
        special_tokens=tokens,
    )


def sentencepiece(vocab_size, with_bytes, specials=("<unk>", "<s>", "</s>")):
    vocab, merges = train(pre_tokenizers.Metaspace(), vocab_size)
    tokens = list(specials)
    if with_bytes:
        tokens += ["<0x%02X>" % b for b in range(256)]
    tokens += sorted(vocab, key=vocab.get)
    return {t: i for i, t in enumerate(tokens)}, merges


SP_DECODER = dict(
    type="Sequence",
    decoders=[
        dict(type="Replace", pattern=dict(String="▁"), content=" "),
        dict(type="ByteFallback"),
        dict(type="Fuse"),
        dict(type="Strip", content=" ", start=1, stop=0),
    ],
)


def tokenizer_files():
    files = {}
    llama3 = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    files["llama3"] = byte_level_json(LLAMA3, llama3, bos="<|begin_of_text|>", ignore_merges=True)
    # Tokens that merging never reaches: only ignore_merges gives them.
    del files["llama3"]["model"]["merges"][-40:]
    files["qwen2"] = byte_level_json(QWEN2, chatml, normalizer=dict(type="NFC"))
    files["qwen2"]["added_tokens"].append(
        added(files["qwen2"]["added_tokens"][-1]["id"] + 1, "<tool>", special=False)
    )
    files["qwen3_5"] = byte_level_json(QWEN35, chatml)
    files["tekken"] = byte_level_json(
        TEKKEN, ["<unk>", "<s>", "</s>"], bos="<s>", ignore_merges=True
    )
    files["o200k"] = byte_level_json(O200K, ["<|endoftext|>"])

    # GPT-2: the pattern built into ByteLevel, a prefix space, merges in the older form.
    gpt2 = byte_level_json(GPT2, ["<|endoftext|>"], old_merges=True)
    gpt2["pre_tokenizer"] = dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True)
    files["gpt2"] = gpt2

    vocab, merges = sentencepiece(380, True)
    specials = [added(i, t) for i, t in enumerate(["<unk>", "<s>", "</s>"])]
    files["llama2"] = base(
        dict(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        added_tokens=specials + [added(len(vocab), "<tool>", normalized=True, special=False)],
        normalizer=dict(
            type="Sequence",
            normalizers=[
                dict(type="Prepend", prepend="▁"),
                dict(type="Replace", pattern=dict(String=" "), content="▁"),
            ],
        ),
        post_processor=template("<s>", 1),
        decoder=SP_DECODER,
    )
    files["gemma"] = base(
        dict(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        added_tokens=specials,
        normalizer=dict(type="Replace", pattern=dict(String=" "), content="▁"),
        pre_tokenizer=dict(
            type="Split", pattern=dict(String=" "), behavior="MergedWithPrevious", invert=False
        ),
        post_processor=template("<s>", 1, "</s>", 2),
        decoder=dict(type="Sequence", decoders=SP_DECODER["decoders"][:3]),
    )

    # Without byte fallback: unknown characters, fused and not, and half of the bytes missing.
    vocab, merges = sentencepiece(420, False)
    vocab.pop("z", None)
    merges = [m for m in merges if "z" not in "".join(m)]
    vocab = {t: i for i, t in enumerate(t for t in vocab if t == "z" or "z" not in t)}
    metaspace = dict(type="Metaspace", replacement="▁", prepend_scheme="first", split=True)
    files["metaspace"] = base(
        dict(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True),
        added_tokens=specials,
        pre_tokenizer=metaspace,
        post_processor=template("<s>", 1),
        decoder=metaspace,
    )
    always = dict(metaspace, prepend_scheme="always", split=False)
    files["metaspace_always"] = base(
        dict(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=False),
        added_tokens=specials,
        pre_tokenizer=always,
        decoder=always,
    )

    # Every flag of added tokens.
    flags = byte_level_json(GPT2, ["<|im_end|>"], normalizer=dict(type="NFC"))
    n = flags["added_tokens"][0]["id"]
    flags["added_tokens"] += [
        added(n + 1, "</s>", lstrip=True),
        added(n + 2, "<s>", rstrip=True),
        added(n + 3, "<tool>", lstrip=True, rstrip=True, special=False),
        added(n + 4, "the", single_word=True, special=False),
        added(n + 5, "<|im_end|>>", special=False),
        added(n + 6, "e\u0301A", normalized=True, special=False),
        added(n + 7, "it", single_word=True, normalized=True, rstrip=True, special=False),
    ]
    files["flags"] = flags

    # Splits of every behaviour, digits, and a pattern without a matcher of its own (PCRE2).
    splits = byte_level_json(GPT2, ["<|im_end|>"])
    splits["pre_tokenizer"] = dict(
        type="Sequence",
        pretokenizers=[
            dict(
                type="Split", pattern=dict(Regex=r"\p{N}{1,3}"), behavior="Isolated", invert=False
            ),
            dict(
                type="Split",
                pattern=dict(Regex="[一-龥\u3040-ゟ゠-ヿ]+"),
                behavior="Isolated",
                invert=False,
            ),
            dict(
                type="Split",
                pattern=dict(
                    Regex=r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"
                    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
                    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
                ),
                behavior="Isolated",
                invert=False,
            ),
            dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False),
        ],
    )
    files["deepseek"] = splits
    behaviours = copy.deepcopy(splits)
    behaviours["pre_tokenizer"]["pretokenizers"] = [
        dict(type="Digits", individual_digits=True),
        dict(
            type="Split",
            pattern=dict(Regex=r"\s\S|(?=[A-Z])"),
            behavior="MergedWithNext",
            invert=False,
        ),
        dict(type="Split", pattern=dict(String="a"), behavior="MergedWithPrevious", invert=False),
        dict(type="Split", pattern=dict(String="b"), behavior="Removed", invert=False),
        dict(type="Split", pattern=dict(Regex="[a-m]+"), behavior="Contiguous", invert=True),
        dict(type="Digits", individual_digits=False),
        dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
    ]
    behaviours["normalizer"] = dict(
        type="Sequence",
        normalizers=[
            dict(type="NFD"),
            dict(type="Replace", pattern=dict(Regex=" {3,}"), content=" "),
            dict(type="Replace", pattern=dict(String="||"), content=""),
        ],
    )
    files["behaviours"] = behaviours
    return files
