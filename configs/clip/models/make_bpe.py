"""Learn the byte-pair merges of the glyph models from the names of the glyphs, in the format that
open_clip reads.

    python configs/clip/models/make_bpe.py [MERGES]

The file glyphs.bpe.gz beside this script was written by it (1,500 merges). A vocabulary of 2,014
tokens in place of CLIP's 49,408 keeps the text tower small; any other text still encodes, in more
tokens, down to single bytes.
"""

import gzip
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import regex
from open_clip.tokenizer import bytes_to_unicode

from steering_tasks.glyphs import load_glyphs


def learn_merges(texts: list[str], count: int) -> list[tuple[str, str]]:
    """Greedy byte-pair encoding: the most frequent neighbours of all words are merged, `count`
    times; ties by name."""
    encode = bytes_to_unicode()
    words: Counter[str] = Counter(
        word
        for text in texts
        for word in regex.findall(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", text.lower())
    )
    spelled = {
        (*(encode[b] for b in word[:-1].encode()), encode[word[-1:].encode()[0]] + "</w>"): n
        for word, n in words.items()
    }
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, n in spelled.items():
            for pair in pairwise(symbols):
                pairs[pair] += n
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spelled = {_merge(symbols, best): n for symbols, n in spelled.items()}
    return merges


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


if __name__ == "__main__":
    merges = learn_merges(load_glyphs().names, int(sys.argv[1]) if len(sys.argv) > 1 else 1500)
    text = "\n".join(
        ["#version: byte pairs of Unicode character names", *(" ".join(pair) for pair in merges)]
    )
    path = Path(__file__).with_name("glyphs.bpe.gz")
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{path}: {len(merges)} merges")
