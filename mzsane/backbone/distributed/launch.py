"""Pre-training in several processes on one machine: started by `torchrun`, watched from here.

Each process runs `backbone.distributed.rank` on a request file and opens the store through the environment; the first
one writes what it would tell a sink to a file, a line each, and one that fails on purpose leaves its error in another.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from mzsane import errors
from mzsane.composition import TokenSlice
from mzsane.config import BackboneConfig, ExecutionConfig, SliceConfig
from mzsane.device import choose_device
from mzsane.errors import ConfigError, MzsaneError, WorkerError
from mzsane.metrics import MetricSink
from mzsane.parallel import count_cores
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from mzsane.windows.memory import Mixture

EVENTS, ERROR = "events.jsonl", "error.json"  # beside the request
_MODULE = "mzsane.backbone.distributed.rank"
_POLL_SECONDS = 0.2
_LAST_WORDS = 15  # lines of a lost process's output that are told


class Request(BaseModel):
    """What the processes are to do, and the process that waits for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    config: BackboneConfig
    slices: tuple[tuple[ArtifactRef, SliceConfig], ...]
    seed: int
    mixture: Mixture
    execution: ExecutionConfig
    launcher: int


def launch_ranks(
    config: BackboneConfig,
    slices: Sequence[TokenSlice],
    seed: int,
    store: ArtifactStore,
    execution: ExecutionConfig,
    sink: MetricSink,
    mixture: Mixture,
) -> None:
    """Pre-train a backbone in `execution.ranks` processes; returns when it is published.

    Raises:
        MzsaneError: the error of a process, as if it had been raised here.
        WorkerError: a process was lost.
        ConfigError: there are fewer GPUs than processes.
    """
    if choose_device(execution.device).type == "cuda" and (gpus := torch.cuda.device_count()) < execution.ranks:
        raise ConfigError(f"execution.ranks is {execution.ranks}, but this machine has {gpus} GPUs")
    request = Request(
        config=config,
        slices=tuple((part.tokens, part.part) for part in slices),
        seed=seed,
        mixture=mixture,
        execution=execution,
        launcher=os.getpid(),
    )
    with tempfile.TemporaryDirectory(prefix="mzsane-ranks-") as name:
        folder = Path(name)
        (folder / "request.json").write_text(request.model_dump_json())
        _watch(folder, execution.ranks, store.root, sink)


def _watch(folder: Path, count: int, root: str, sink: MetricSink) -> None:
    """Run the processes and pass on what the first one tells."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", _MODULE, str(folder / "request.json")]
    threads = str(max(1, count_cores() // count))
    environment = {**os.environ, "MZSANE_ROOT": root, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    events = folder / EVENTS
    events.touch()
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            with events.open() as told:
                begun = ""  # a line of which the rest is still being written
                while process.poll() is None:
                    begun = _pass_on(begun + told.read(), sink)
                    time.sleep(_POLL_SECONDS)
                _pass_on(begun + told.read(), sink)
        finally:
            if process.poll() is None:
                process.terminate()  # torchrun ends the others
                process.wait()
    if process.returncode:
        raise _explain_failure(folder, count)


def _pass_on(text: str, sink: MetricSink) -> str:
    """Tell a sink what whole lines say; return what follows them."""
    *lines, begun = text.split("\n")
    for line in lines:
        event = json.loads(line)
        if "values" in event:
            sink.metrics(event["values"], event["step"])
        else:
            sink.progress(event["done"], event["total"], event["note"])
    return begun


def _explain_failure(folder: Path, count: int) -> MzsaneError:
    """Return the error for people: a process's own, or which one was lost and how."""
    if (folder / ERROR).exists():
        left = json.loads((folder / ERROR).read_text())
        known: type[MzsaneError] = getattr(errors, left["kind"])
        return known(left["text"])
    output = (folder / "output").read_text()
    failures = [
        (int(rank), int(code)) for rank, code in re.findall(r"rank\s*:\s*(\d+).*?\n\s*exitcode\s*:\s*(-?\d+)", output)
    ]
    # When one is killed the others fail for want of it, or are ended with SIGTERM.
    for rank, code in sorted(failures, key=lambda failure: (failure[1] == -signal.SIGTERM, failure[1] > 0)):
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        why = " (often for want of memory)" if -code == signal.SIGKILL else ""
        last = " / ".join(line.strip() for line in output.splitlines()[-_LAST_WORDS:]) if code > 0 else ""
        return WorkerError(
            f"process {rank} of {count} of the pre-training {how}{why}; a rerun continues from the last checkpoint"
            + (f"; its last words: {last}" if last else "")
        )
    return WorkerError(f"the {count} processes of the pre-training did not start: {output.strip()[-500:]}")
