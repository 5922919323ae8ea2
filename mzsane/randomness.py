"""Seeds and generators: every random number of mzsane comes from a config's seed through one of these."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from a root seed and the names of what it is for.

    Streams with different parts are independent, so that adding a consumer never shifts another one's numbers.
    """
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(*parts: int | str) -> torch.Generator:
    """Make a CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
