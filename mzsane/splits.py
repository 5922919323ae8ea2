"""Which split a model is in: train, val or test.

The answer depends on a seed and on the model's name alone, or on that of the model which it descends from. So adding a
model or leaving one out moves no other, zoos that are read from one source with different filters never leak into each
other, and sparse twins are where their originals are.

Names that differ in their last number alone are one family (`000003`, `run_3/model`, `trial_3_seed=3`). The numbers of
a family are dealt in blocks: the first block is the smallest in which every split has a model, later ones double up to
20 numbers. A block gets as many models of each split as keep the shares nearest to their fractions; which of its
numbers they are is drawn by the seed, so that a grid of factors never runs in step with the splits. A name without a
number is drawn by itself.
"""

import hashlib
import re
from collections import Counter
from functools import lru_cache

SPLITS = ("train", "val", "test")
Shares = tuple[float, float, float]
_NUMBER = re.compile(r"[0-9]+")
_DIGITS = 5  # longer numbers are dates and hashes, not numbers of models
_BLOCK = 20
_FIRST_BLOCK = 1024  # at most, where a split has a tiny share
_EXACT = 9  # decimals; shares such as 0.7 have none in binary


def find_shares(train: float, validation: float) -> Shares:
    """Return the shares of the splits, of which the last takes the rest."""
    return train, validation, max(0.0, round(1 - train - validation, _EXACT))


def assign_split(root: str, shares: Shares, seed: int) -> str:
    """Return the split of a model.

    Args:
        root: name of the model, or of the one that it descends from.
        shares: fractions of train, val and test.
        seed: what tells this way of splitting from others.
    """
    numbers = [digits.lstrip("0") or "0" for digits in _NUMBER.findall(root)]
    if not numbers or len(numbers[-1]) > _DIGITS:
        return _draw(_hash(seed, root) / 2**64, shares)
    last = numbers[-1]
    if len(set(numbers)) == 1:
        family = _NUMBER.sub("#", root)
    else:
        *_, place = _NUMBER.finditer(root)
        family = f"{root[: place.start()]}#{root[place.end() :]}"
    start, end = _find_block(int(last), _first_block(shares))
    return _deal_block(start, end, family, shares, seed)[int(last)]


def count_splits(models: int, shares: Shares, seed: int) -> dict[str, int]:
    """Return how many of the models of a trained zoo, which are numbered from 0, fall in each split."""
    found = Counter(assign_split(str(number), shares, seed) for number in range(models))
    return {split: found[split] for split in SPLITS}


def _hash(*parts: int | str) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


def _draw(place: float, shares: Shares) -> str:
    """Return the split at a place between 0 and 1."""
    end = 0.0
    for split, share in zip(SPLITS, shares, strict=True):
        end = round(end + share, _EXACT)
        if place < end:
            return split
    return SPLITS[-1]


@lru_cache(maxsize=64)
def _sequence(shares: Shares, count: int) -> list[str]:
    """Return splits one after the other, each the one that is furthest behind its share."""
    given = [0, 0, 0]
    sequence = []
    for number in range(1, count + 1):
        behind = [round(share * number - given[place], _EXACT) if share else -1.0 for place, share in enumerate(shares)]
        place = behind.index(max(behind))
        given[place] += 1
        sequence.append(SPLITS[place])
    return sequence


def _first_block(shares: Shares) -> int:
    """Return the smallest number of models of which each split that has a share gets one."""
    sequence = _sequence(shares, _FIRST_BLOCK)
    used = [split for split, share in zip(SPLITS, shares, strict=True) if share]
    return max(sequence.index(split) + 1 if split in sequence else _FIRST_BLOCK for split in used)


def _find_block(number: int, first: int) -> tuple[int, int]:
    """Return the first number of a number's block, and the one after its last."""
    if number >= max(first, _BLOCK):
        start = number // _BLOCK * _BLOCK
        return max(start, first), start + _BLOCK
    start, end = 0, first
    while number >= end:
        start, end = end, min(2 * end, _BLOCK)
    return start, end


@lru_cache(maxsize=4096)
def _deal_block(start: int, end: int, family: str, shares: Shares, seed: int) -> dict[int, str]:
    """Return the splits of the numbers of a block."""
    length = _FIRST_BLOCK
    while length < end:
        length *= 2
    numbers = sorted(range(start, end), key=lambda number: _hash(seed, family, number))
    return dict(zip(numbers, _sequence(shares, length)[start:end], strict=True))
