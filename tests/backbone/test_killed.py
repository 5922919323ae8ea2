"""A pre-training that is killed by SIGKILL, again and again, at any moment, ends with the bits of one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from mzsane.backbone.pretrain import plan_backbone, pretrain
from mzsane.composition import TokenSlice
from mzsane.config import BackboneConfig, ExecutionConfig, SliceConfig
from mzsane.store.artifacts import Artifact, ArtifactStore

EXECUTION = ExecutionConfig(device="cpu", checkpoint_steps=4)
LATEST = 16  # steps, about, between a line of progress and a kill
SCRIPT = """
import os
import sys
import torch
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from mzsane.backbone.pretrain import pretrain
from mzsane.config import BackboneConfig, ExecutionConfig, SliceConfig
from mzsane.composition import TokenSlice

class Printer:
    def metrics(self, values, step):
        pass

    def progress(self, done, total, note=""):
        print(done, flush=True)

root, tokens, part, config, execution = sys.argv[1:]
slices = [TokenSlice(ArtifactRef.model_validate_json(tokens), SliceConfig.model_validate_json(part))]
config, execution = BackboneConfig.model_validate_json(config), ExecutionConfig.model_validate_json(execution)
for _ in sys.stdin:  # each line asks for a fresh process; nothing has been computed in this one
    child = os.fork()
    if not child:
        print(os.getpid(), flush=True)
        torch.set_num_threads(1)
        pretrain(config, slices, 0, ArtifactStore(root), execution, Printer())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else "ended", flush=True)
"""


@pytest.fixture(scope="module")
def slices(tiny_tokens: Artifact) -> list[TokenSlice]:
    return [TokenSlice(tiny_tokens.ref, SliceConfig(zoo="tiny", models=3))]


@pytest.fixture(scope="module")
def config(tiny_backbone_config: BackboneConfig) -> BackboneConfig:
    """Everything that a checkpoint must carry."""
    settings = {"steps": 120, "averaging": 0.9, "accumulation": 2, "publish": "best", "validations": 6}
    return tiny_backbone_config.model_copy(update=settings | {"schedule": "one-cycle"})


def run_and_kill(server: subprocess.Popen[str], lines: int, seconds: float) -> tuple[list[int], bool]:
    """Pre-train in a process and kill it some time after a line of its progress.

    Returns:
        The steps that it told, and whether it was killed before its end.
    """
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    pid, told = int(server.stdout.readline()), list[int]()
    while len(told) < lines:
        line = server.stdout.readline().strip()
        if not line.isdecimal():
            return told, False
        told.append(int(line))
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    while (line := server.stdout.readline().strip()).isdecimal():
        told.append(int(line))
    return told, line == "killed"


def hash_files(artifact: Artifact) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items()}


@pytest.mark.parametrize(
    ("kills", "lines", "seed"),
    [
        pytest.param(2, (1, 2), 0),
        pytest.param(12, (1, 1), 1, marks=pytest.mark.slow),
        pytest.param(6, (0, 3), 2, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_and_run_to_the_end_equals_uninterrupted(
    config: BackboneConfig,
    slices: list[TokenSlice],
    make_store: Callable[[], ArtifactStore],
    kills: int,
    lines: tuple[int, int],
    seed: int,
) -> None:
    started = time.perf_counter()
    whole = hash_files(pretrain(config, slices, 0, make_store()))
    step_seconds = (time.perf_counter() - started) / config.steps
    store, moments = make_store(), random.Random(seed)
    work, begun, (part,) = plan_backbone(config, slices, 0), list[int](), slices
    given = [store.root, part.tokens.model_dump_json(), part.part.model_dump_json()]
    given += [config.model_dump_json(), EXECUTION.model_dump_json()]
    command, pipe = [sys.executable, "-c", SCRIPT, *given], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as server:
        for _ in range(kills):
            told, killed = run_and_kill(server, moments.randint(*lines), moments.uniform(0, LATEST) * step_seconds)
            assert killed != store.exists(work.ref)
            if not killed:
                break
            begun += told[:1]
    assert begun == sorted(begun)  # what was saved is never lost
    assert len(set(begun)) > 1
    resumed = pretrain(config, slices, 0, store, EXECUTION)
    assert int(resumed.manifest.counts["resumed_from_step"]) >= begun[-1] > 0
    assert hash_files(resumed) == whole
    assert store.partial(work).names() == set()
