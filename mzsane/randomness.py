"""Seeds and generators: every random number of mzsane comes from a config's seed through one of these."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
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


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed from a generator."""
    return int(torch.randint(2**62, (1,), generator=generator))


def peek_seed(generator: torch.Generator) -> int:
    """Return the seed that would be drawn next, and leave the generator as it is."""
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    return draw_seed(copy)


@contextmanager
def seed_globally(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators inside the block, and give them their states back after it.

    Networks draw from them, whoever wrote these: dropout of any kind, noise, constructors. So what is drawn depends on
    nothing that the process did before.

    Args:
        seed: for Python's, numpy's and torch's generator on the CPU, and torch's on the device.
        device: where the network computes, if that is not the CPU.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for there in devices:
            with torch.cuda.device(there):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
