"""The loops of the pre-training benchmark, each in a process of its own, and the models that they train on.

As a script it is such a process: `python pretrain_loops.py REQUEST` builds the loop of a request in JSON, and then for
each number of steps in a line of its input trains them and prints what they took.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from pretrain_plain import PlainLoop
from tokens_windows import ARCHITECTURES, lay_out, publish_random, read_peak

from mzsane.backbone.checkpoints import Checkpoints
from mzsane.backbone.distributed.ranks import Ranks
from mzsane.backbone.machine import measure_matrix_peak
from mzsane.backbone.training import Training
from mzsane.composition import TokenSlice, choose_checkpoints
from mzsane.config import BackboneConfig, ExecutionConfig, NetworkConfig, SliceConfig
from mzsane.metrics import NO_SINK
from mzsane.networks.build import build_network, initialise_network
from mzsane.store.artifacts import ArtifactRef, ArtifactStore, Work

# store, tokens (a fingerprint), models, device, settings (of the backbone); for the plain loop window and step_models.
Request = dict[str, Any]
Reply = dict[str, float]

WAITING_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def write_models(store: ArtifactStore, architecture: str, models: int, part_models: int) -> ArtifactRef:
    """Publish a TOKENS artifact of random weights, each tensor with the deviation that it has in a new network."""
    zoo = ArtifactRef(kind="zoo", fingerprint="0" * 64)  # there is none: the weights are of no zoo
    settings = {"architecture": architecture, "models": models, "part_models": part_models}
    work = Work("tokens", 0, settings, {"zoo": zoo})
    if store.exists(work.ref):
        return work.ref
    layout, groups = lay_out(architecture)
    _, channels, size, _ = ARCHITECTURES[architecture]
    generator = torch.Generator().manual_seed(0)
    network = build_network(NetworkConfig(architecture=architecture), channels, 10, size)
    initialise_network(network, "kaiming_uniform", generator)
    deviation_P = layout.flatten(
        {
            name: value.std(correction=0).clamp(min=0.02).expand(value.shape)
            for name, value in network.named_parameters()
        }
    )
    return publish_random(store, work, layout, groups, models, part_models, generator, deviation_P)


class OurLoop:
    """The loop of pre-training, driven step by step: without validation, checkpoints and the artifact at the end."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def run(self, steps: int) -> Reply:
        """Train some steps, of which the last is described as in a training; return speeds and the last loss."""
        training, clock = self.training, self.training.clock
        clock.start()
        for step in range(steps):
            values = training._take_step(step + 1 == steps)
            training.step += 1
        timing = clock.read()
        assert clock.peak is not None
        return {
            **timing,
            "flops_per_s": timing["matrix_peak_share"] * clock.peak,
            "peak": measure_matrix_peak(training.ranks.device, training.model.precision),
            "loss": values["loss"],
        }


def serve(request: Request) -> None:
    """Build a loop; then, for each number of steps in a line of the input, train them and print the reply."""
    libraries = read_peak()
    config, device = BackboneConfig.model_validate(request["settings"]), torch.device(request["device"])
    store = ArtifactStore(request["store"])
    ref = ArtifactRef(kind="tokens", fingerprint=request["tokens"])
    chosen = choose_checkpoints([TokenSlice(ref, SliceConfig(zoo="random", models=request["models"]))], 0, store)
    if "window" in request:
        answer(PlainLoop(config, chosen[0], request["window"], request["step_models"], device), libraries)
        return
    checkpoints = Checkpoints(store.partial(Work("backbone", 0, {})))
    ranks = Ranks(device=device)
    with Training(config, 0, chosen, "checkpoints", checkpoints, ExecutionConfig(), NO_SINK, ranks) as training:
        answer(OurLoop(training), libraries)


def answer(loop: OurLoop | PlainLoop, libraries: float) -> None:
    """Train as many steps as each line of the input says; tell the peak memory too, MB, in all and before the loop."""
    for line in sys.stdin:
        reply = loop.run(int(line))
        print(json.dumps({**reply, "process_mb": read_peak(), "libraries_mb": libraries}), flush=True)


def start(request: Request) -> subprocess.Popen[str]:
    """Start a loop in a process of its own, idle when it is not its turn; it ends with its input.

    The threads of the plain loop wait for each other as OpenMP has it, those of ours as mzsane has it.
    """
    command = [sys.executable, __file__, json.dumps(request)]
    environment = {
        name: value for name, value in os.environ.items() if "window" not in request or name not in WAITING_SETTINGS
    }
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def ask(process: subprocess.Popen[str], steps: int) -> Reply:
    """Let a loop train some steps.

    Raises:
        RuntimeError: its process has ended.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    print(steps, file=process.stdin, flush=True)
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a loop has ended with exit code {process.wait()}; its error is above")
    reply: Reply = json.loads(line)
    return reply


def take_turns(requests: Mapping[str, Request], steps: int | Mapping[str, int], turns: int) -> dict[str, list[Reply]]:
    """Let loops train in turns; return what each replied, after its first step and after each turn.

    The first step makes plans, compiles and warms up, and is in no turn.
    """
    with ExitStack() as stack:
        processes = {name: stack.enter_context(start(request)) for name, request in requests.items()}
        replies = {name: [ask(process, 1)] for name, process in processes.items()}
        for _ in range(turns):
            for name, process in processes.items():
                replies[name].append(ask(process, steps if isinstance(steps, int) else steps[name]))
    return replies


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
