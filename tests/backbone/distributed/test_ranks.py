"""Pre-training in several processes: the same as in one, and clear about what went wrong."""

import os
import re
import signal
import time
from pathlib import Path

import polars as pl
import pytest
import torch

from mzsane.backbone.distributed.launch import _pass_on
from mzsane.backbone.distributed.ranks import Ranks
from mzsane.backbone.inference import load_backbone
from mzsane.backbone.pretrain import plan_backbone, pretrain
from mzsane.composition import TokenSlice
from mzsane.config import ExecutionConfig, SliceConfig
from mzsane.errors import ConfigError, DivergedError, WorkerError

TWO = ExecutionConfig(ranks=2, device="cpu", checkpoint_steps=10)


class Watcher:
    """A sink that remembers, and does something when a step is reached."""

    def __init__(self, act=None):
        self.act, self.values, self.done = act, {}, []

    def metrics(self, values, step):
        self.values[step] = dict(values)

    def progress(self, done, total, note=""):
        self.done.append(done)
        if self.act:
            self.act(done)


@pytest.fixture(scope="module")
def slices(tiny_tokens):
    return [TokenSlice(tiny_tokens.ref, SliceConfig(zoo="tiny", models=3))]


@pytest.fixture(scope="module")
def config(tiny_backbone_config):
    # Everything that looks at the whole batch: its variance, all its windows and latents, and two parts of a step.
    settings = {
        "steps": 40,
        "normalisation": "batch",
        "gamma": 0.3,
        "latent_norm": 0.1,
        "latent_variance": 1.0,
        "batch_size": 8,
        "accumulation": 2,
        "validations": 1,
        "shortcut": True,
    }
    return tiny_backbone_config.model_copy(update=settings)


def read_curves(backbone):
    frame = pl.read_parquet(backbone.path("curves.parquet"))
    return {(step, name): value for step, name, value in frame.rows()}


@pytest.mark.parametrize("sharding", ["replicate", pytest.param("shard", marks=pytest.mark.slow)])
def test_two_processes_compute_what_one_does_with_the_whole_batch(config, slices, make_store, sharding):
    alone = pretrain(config, slices, 0, make_store(), ExecutionConfig(device="cpu"))
    sink = Watcher()
    together = pretrain(config, slices, 0, make_store(), TWO.model_copy(update={"sharding": sharding}), sink)
    assert together.ref == alone.ref
    assert (alone.manifest.counts["processes"], together.manifest.counts["processes"]) == (1, 2)
    ours, theirs = read_curves(together), read_curves(alone)
    assert ours.keys() == theirs.keys()
    compared = [key for key in ours if key[1].startswith(("loss", "gradient_norm", "learning_rate", "val_r2"))]
    assert {name for _, name in compared} >= {"loss", "loss_reconstruction", "loss_contrast", "gradient_norm"}
    for key in compared:
        assert ours[key] == pytest.approx(theirs[key], rel=2e-4, abs=1e-6), key
    for name, value in load_backbone(together)[0].state_dict().items():
        torch.testing.assert_close(value, load_backbone(alone)[0].state_dict()[name], rtol=1e-2, atol=1e-4)
    assert sink.done[0] == 0
    assert sink.done[-1] == 40
    assert sink.values[40]["tokens_per_s"] > 0


@pytest.mark.slow
def test_a_sharded_training_continues_in_one_process(config, slices, make_store):
    averaged, store = config.model_copy(update={"averaging": 0.9}), make_store()
    with pytest.raises(KeyboardInterrupt):
        pretrain(averaged, slices, 0, store, TWO.model_copy(update={"sharding": "shard"}), Watcher(stop_after(20)))
    sink = Watcher()
    resumed = pretrain(averaged, slices, 0, store, ExecutionConfig(device="cpu"), sink)
    assert sink.done[0] in (10, 20, 30)
    alone = pretrain(averaged, slices, 0, make_store(), ExecutionConfig(device="cpu"))
    ours, theirs = read_curves(resumed), read_curves(alone)
    for key in [(40, "loss"), (40, "val_r2/0")]:
        assert ours[key] == pytest.approx(theirs[key], rel=2e-4, abs=1e-6)


def test_a_lost_process_is_named_and_a_rerun_continues(config, slices, make_store):
    store = make_store()
    long = config.model_copy(update={"steps": 4000})
    partial = store.partial(plan_backbone(long, slices, 0))
    killed = []

    def kill_second(done):
        if done < 20 or killed or not any(name.startswith("step") for name in partial.names()):
            return
        (rank,) = [pid for pid in find_ranks() if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
        killed.append(rank)
        os.kill(rank, signal.SIGKILL)

    with pytest.raises(WorkerError) as caught:
        pretrain(long, slices, 0, store, TWO, Watcher(kill_second))
    assert re.match(r"process 1 of 2 of the pre-training was killed by SIGKILL .*a rerun continues", str(caught.value))
    assert "\n" not in str(caught.value)
    sink = Watcher(stop_after(20))
    with pytest.raises(KeyboardInterrupt):
        pretrain(long, slices, 0, store, ExecutionConfig(device="cpu"), sink)
    assert sink.done[0] >= 10


@pytest.mark.slow
def test_processes_end_with_the_one_that_waits_for_them(config, slices, make_store):
    long = config.model_copy(update={"steps": 4000})
    with pytest.raises(KeyboardInterrupt):
        pretrain(long, slices, 0, make_store(), TWO, Watcher(stop_after(20)))
    end = time.monotonic() + 20
    while find_ranks() and time.monotonic() < end:
        time.sleep(0.2)
    assert find_ranks() == []


@pytest.mark.slow
def test_errors_of_a_process_are_raised_here(config, slices, make_store):
    diverging = config.model_copy(update={"learning_rate": 10.0, "weight_decay": 1.0})
    with pytest.raises(DivergedError, match=r"^the pre-training loss (has exploded|is nan).*lower backbone"):
        pretrain(diverging, slices, 0, make_store(), TWO)


def test_a_line_that_is_still_being_written_waits_for_its_rest():
    lines = '{"done": 1, "total": 2, "note": ""}\n{"values": {"loss": 0.5}, "step": 1}\n'
    for cut in range(len(lines) + 1):
        sink, told = Watcher(), ""
        for piece in (lines[:cut], lines[cut:]):
            told = _pass_on(told + piece, sink)
        assert (sink.done, sink.values, told) == ([1], {1: {"loss": 0.5}}, ""), cut


def test_a_batch_is_shared_without_gaps():
    parts = [Ranks(rank, 4).share(12) for rank in range(4)]
    assert [list(range(12))[part] for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    with pytest.raises(ConfigError, match="cannot be shared by 5"):
        Ranks(0, 5).share(12)


def stop_after(count):
    def act(done):
        if done >= count:
            raise KeyboardInterrupt

    return act


def find_ranks():
    """Return the processes of a pre-training that this one, or what it has started, has started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                line = (folder / "cmdline").read_bytes()
                marks = (folder / "environ").read_bytes()
            except OSError:
                continue
            if b"mzsane.backbone.distributed.rank" in line and b"\0RANK=" in marks:
                found.append(int(folder.name))
    return found
