#!/usr/bin/env python3
"""Prints the constants of unicode_test.cc and unicode_normal_form_test.cc.

pip install unicodedata2==16.0.0
"""

import unicodedata2 as ucd

assert ucd.unidata_version == "16.0.0"
CATEGORIES = (
    "Cn Cc Cf Co Cs Ll Lm Lo Lt Lu Mc Me Mn Nd Nl No Pc Pd Pe Pf Pi Po Ps Sc Sk Sm So " "Zl Zp Zs"
).split()
M64 = 2**64 - 1


def fnv1a(h, data):
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & M64
    return h


BASIS = 0xCBF29CE484222325
print(
    "categories 0x%x"
    % fnv1a(BASIS, bytes(CATEGORIES.index(ucd.category(chr(c))) for c in range(0x110000)))
)

# Every code point alone, then 100,000 strings of up to 6 from blocks that combine.
POOL = [
    c
    for first, last in (
        (0xC0, 0x3200),
        (0xAC00, 0xAC80),
        (0xF900, 0xFB50),
        (0x11000, 0x11A00),
        (0x1D15E, 0x1D1AA),
        (0x16D60, 0x16D70),
    )
    for c in range(first, last)
]
for form in ("NFC", "NFD"):
    h = BASIS
    for c in range(0x110000):
        if not 0xD800 <= c < 0xE000:
            h = fnv1a(h, ucd.normalize(form, chr(c)).encode())
    state, strings = 1, BASIS

    def draw():
        global state
        state = (state * 6364136223846793005 + 1442695040888963407) & M64
        return state >> 33

    for _ in range(100000):
        text = "".join([chr(POOL[draw() % len(POOL)]) for _ in range(draw() % 6 + 1)])
        strings = fnv1a(strings, ucd.normalize(form, text).encode())
    print("%s single 0x%x strings 0x%x" % (form, h, strings))
