"""What the machine can do, and what pre-training makes of it."""

import ctypes
import resource
import sys
import time
from pathlib import Path

import torch

from mzsane.config import BackboneConfig

_PEAK_SIZE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is timed
_PEAK_REPEATS = 5
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that glibc takes


def choose_precision(config: BackboneConfig, device: torch.device) -> torch.dtype:
    """Return the number format of the matrix products: for `auto` bfloat16 where the hardware computes in it."""
    if config.precision != "auto":
        return torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if able else torch.float32


def measure_matrix_peak(device: torch.device, precision: torch.dtype) -> float:
    """Return the FLOP/s of a product of large square matrices, the best of a few; about 0.1 s."""
    size = _PEAK_SIZE[device.type]
    a, b = (torch.ones(size, size, device=device, dtype=precision) for _ in range(2))
    times = []
    for _ in range(_PEAK_REPEATS + 1):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times[1:])


def count_flops(config: BackboneConfig, token_dim: int, tokens: int, attended: int) -> float:
    """Return the floating-point operations of a training step in matrix products: forward, and twice that backward.

    Args:
        config: sizes.
        token_dim: width of a token.
        tokens: real tokens of both views.
        attended: pairs of tokens of which one attends to the other.
    """
    blocks = 2 * config.layers
    per_token = blocks * 12 * config.d_model**2 + 2 * config.d_model * (token_dim + config.latent_dim)
    if config.shortcut:
        per_token += 2 * token_dim * config.latent_dim
    return 3 * 2 * (per_token * tokens + blocks * 2 * config.d_model * attended)


def measure_memory(device: torch.device) -> float:
    """Return the largest memory that was in use so far, GiB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform.startswith("linux"):  # what `resource` tells begins with the memory of the process that started it
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def keep_freed_memory(keep: bool = True) -> None:
    """Let the C library keep the memory of freed tensors for the next ones, or give it back.

    A training step on a CPU frees and takes the same few hundred blocks again and again. By default each large one
    goes back to the system, and its pages are cleared and mapped anew when it is taken again, which cost a sixth of the
    steps of a small backbone. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        return
    if keep:
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    else:
        library.mallopt(_M_TRIM_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        library.malloc_trim(0)
