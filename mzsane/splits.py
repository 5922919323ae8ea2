"""Which split a model is in: train, val or test.

The answer depends on a seed and on the model's name alone, or on that of the model which it descends from. So adding a
model or leaving one out moves no other, zoos that are read from one source with different filters never leak into each
other, and sparse twins are where their originals are.

Names that differ in their last number alone are one family (`000003`, `run_3/model`, `trial_3_seed=3`). The numbers of
a family are dealt in blocks of 20. A block gets as many models of each split as keep the shares nearest to their
fractions; which of its numbers they are is drawn by the seed, so that a grid of factors never runs in step with the
splits. The first block holds the shares for small zoos too: its first numbers have a model of every split, and each
later one is drawn from the splits that are behind their shares. A name without a number is drawn by itself.
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
    number, first = int(last), max(_first_block(shares), _BLOCK)
    if number < first:
        return _deal_first(first, family, shares, seed)[number]
    start = max(number // _BLOCK * _BLOCK, first)
    return _deal_block(start, number // _BLOCK * _BLOCK + _BLOCK, family, shares, seed)[number]


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


@lru_cache(maxsize=4096)
def _deal_first(end: int, family: str, shares: Shares, seed: int) -> list[str]:
    """Return the splits of the numbers below `end`, of which any first ones hold the shares nearly."""
    sequence = _sequence(shares, _FIRST_BLOCK)[:end]
    first = _first_block(shares)
    left = Counter(sequence)
    dealt: list[str] = [""] * first
    shuffled = sorted(range(first), key=lambda number: _hash(seed, family, number))
    for number, split in zip(shuffled, sequence, strict=False):
        dealt[number] = split
        left[split] -= 1
    for number in range(first, end):
        late = {}
        for split, share in zip(SPLITS, shares, strict=True):
            behind = share * (number + 1) - dealt.count(split)
            if left[split] and behind > 0:
                late[split] = behind
        total = sum(late.values())
        place = _hash(seed, family, number) / 2**64 * total
        chosen = next(split for split in SPLITS if left[split])
        for split, value in late.items():
            chosen = split
            place -= value
            if place < 0:
                break
        dealt.append(chosen)
        left[chosen] -= 1
    return dealt


@lru_cache(maxsize=4096)
def _deal_block(start: int, end: int, family: str, shares: Shares, seed: int) -> dict[int, str]:
    """Return the splits of the numbers of a block."""
    length = _FIRST_BLOCK
    while length < end:
        length *= 2
    numbers = sorted(range(start, end), key=lambda number: _hash(seed, family, number))
    return dict(zip(numbers, _sequence(shares, length)[start:end], strict=True))
