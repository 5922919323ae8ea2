"""One process of a pre-training that several do together: `torchrun ... -m THIS_MODULE REQUEST`."""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from mzsane.backbone.distributed.launch import ERROR, EVENTS, Request
from mzsane.backbone.distributed.ranks import join_ranks
from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.device import choose_device
from mzsane.errors import MzsaneError
from mzsane.store.artifacts import ArtifactStore

_FAILED = 3  # exit code of a process that has left its error


class _FileSink:
    """Writes what a sink is told to a file, a line each."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", buffering=1)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Write metric values."""
        self.file.write(json.dumps({"values": dict(values), "step": step}) + "\n")

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Write the progress."""
        self.file.write(json.dumps({"done": done, "total": total, "note": note}) + "\n")


def run_rank(path: Path) -> int:
    """Do this process's part of a request; returns the exit code."""
    request = Request.model_validate_json(path.read_text())
    threading.Thread(target=_end_with, args=(request.launcher,), daemon=True).start()
    slices = [TokenSlice(tokens, part) for tokens, part in request.slices]
    try:
        with join_ranks(choose_device(request.execution.device)) as ranks:
            pretrain(
                request.config,
                slices,
                request.seed,
                ArtifactStore.from_environment(),
                request.execution,
                _FileSink(path.with_name(EVENTS)),
                request.mixture,
                ranks,
            )
    except MzsaneError as error:
        logging.exception("this process of the pre-training failed")
        fresh = path.with_name(f"{ERROR}.{os.getpid()}")
        fresh.write_text(json.dumps({"kind": type(error).__name__, "text": str(error)}))
        fresh.replace(path.with_name(ERROR))
        return _FAILED
    return 0


def _end_with(launcher: int) -> None:
    """End this process when the one that waits for it is gone, even by SIGKILL, so that a rerun is alone."""
    while True:
        try:
            os.kill(launcher, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(run_rank(Path(sys.argv[1])))
