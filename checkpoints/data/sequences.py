"""Short sequences of symbols and what a task makes of them: copy, reverse, sort, translate.

An example is teacher-forced. Its pixels (symbols, 2, T) are one-hot: row 0 is the source between a
start and an end mark, row 1 the target behind a start mark, as a decoder is given it. Its labels
(T,) are the target and an end mark: the symbol that follows at each position. Behind its end the
source is 0, and the target repeats the end mark, with labels that are `IGNORED`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from checkpoints.data.images import Images, Split
from checkpoints.losses import IGNORED

WORDS = tuple("abcdefghij")
SYMBOLS = ("start", "end", *WORDS)
START, END, FIRST = 0, 1, 2
TRAIN, TEST = 20_000, 2_000
LENGTHS, LONGER = (4, 10), (11, 15)  # words of a source, both included
SEED = 2019

Words: TypeAlias = tuple[int, ...]


def load(task: str, lengths: tuple[int, int], split: Split, root: Path | None = None) -> Images:
    """One split of a task, the same on every call.

    Words are drawn uniformly, and so are lengths. No source occurs twice, so none in both splits;
    tasks have the same sources in the same order.

    Args:
        task: a key of `TASKS`.
        lengths: the fewest and the most words of a source. With `LONGER`, all in the test split.
        split: `train` (20,000 examples) or `test` (2,000).
        root: ignored, since nothing is read.

    Returns:
        Pixels (N, symbols, 2, T) and labels (N, T), with T what the longest example needs.

    Raises:
        ValueError: there is no training split of longer sequences.

    Cost: a second.
    """
    longer = lengths == LONGER
    name = f"{task}-long" if longer else task
    if longer and split == "train":
        raise ValueError(f"{name} has test sequences alone. For training pass --data {task}.")
    sources = _sources(lengths, TEST if longer else TRAIN + TEST)
    pairs = [(source, TASKS[task](source)) for source in sources]
    length = max(max(len(source) + 2, len(target) + 1) for source, target in pairs)
    pairs = pairs[TRAIN:] if split == "test" and not longer else pairs[:TRAIN]
    pixels = np.zeros((len(pairs), len(SYMBOLS), 2, length), np.uint8)
    labels = np.full((len(pairs), length), IGNORED, np.int64)
    for row, (source, target) in enumerate(pairs):
        read = [START, *(FIRST + word for word in source), END]
        written = [START, *(FIRST + word for word in target)]
        pixels[row, read, 0, range(len(read))] = 255
        pixels[row, written + [END] * (length - len(written)), 1, range(length)] = 255
        labels[row, : len(written)] = [*written[1:], END]
    return Images(pixels, labels, SYMBOLS, name, split)


def translated(source: Words) -> Words:
    """Word by word from a fixed dictionary, where some words change places with the next.

    Each word has one word of the target, three of the ten have two. Three words, as adjectives do
    in French, stand in the target behind the word that follows them in the source.
    """
    dictionary, swapping = _dictionary()
    order: list[int] = []
    words = list(source)
    while words:
        taken = 2 if words[0] in swapping and len(words) > 1 else 1
        order += reversed(words[:taken])
        words = words[taken:]
    return tuple(word for each in order for word in dictionary[each])


@cache
def _dictionary() -> tuple[tuple[Words, ...], frozenset[int]]:
    """{word: its one or two words}, as a tuple, and the words that change places."""
    draw = np.random.default_rng([SEED, 0])
    first, second = draw.permutation(len(WORDS)), draw.permutation(len(WORDS))
    double, swapping = (set(draw.permutation(len(WORDS))[:3].tolist()) for _ in range(2))
    entries = (
        (int(a), int(b)) if word in double else (int(a),)
        for word, (a, b) in enumerate(zip(first, second, strict=True))
    )
    return tuple(entries), frozenset(swapping)


@cache
def _sources(lengths: tuple[int, int], count: int) -> list[Words]:
    """Different sources, as tuples of word numbers."""
    fewest, most = lengths
    draw = np.random.default_rng([SEED, 1, *lengths])
    found: dict[Words, None] = {}
    while len(found) < count:
        words: NDArray[np.int64] = draw.integers(0, len(WORDS), most)
        found[tuple(words[: draw.integers(fewest, most + 1)].tolist())] = None
    return list(found)


def _sorted(source: Words) -> Words:
    return tuple(sorted(source))


TASKS: dict[str, Callable[[Words], Words]] = {
    "copy": tuple,
    "reverse": lambda source: source[::-1],
    "sort": _sorted,
    "translate": translated,
}

load_copy, load_reverse, load_sort, load_translate = (
    partial(load, task, LENGTHS) for task in TASKS
)
load_longer_copy, load_longer_reverse, load_longer_sort, load_longer_translate = (
    partial(load, task, LONGER) for task in TASKS
)
