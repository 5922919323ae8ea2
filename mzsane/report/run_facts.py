"""When, where and by which code a report was made."""

import platform
import time

import torch

from mzsane.parallel import count_cores
from mzsane.report.page.page import Facts
from mzsane.store.making import find_commit


def describe_run(started: float | None = None) -> Facts:
    """Return the facts of a run that ends now.

    Args:
        started: when it began, in seconds since the epoch; None if that is not known.
    """
    cores = count_cores()
    machine = f"{platform.system()} {platform.machine()}, {cores} core{'s' * (cores != 1)}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return Facts(
        date=time.strftime("%Y-%m-%d"),
        commit=find_commit(),
        machine=f"{machine}, torch {torch.__version__.partition('+')[0]}",
        minutes=None if started is None else (time.time() - started) / 60,
    )
