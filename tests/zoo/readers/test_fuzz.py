"""Two thousand broken files of every form: read or refused with a reason, never a crash, and nothing is executed."""

import io
import os
import pickle
import random
import shutil
import sys
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from mzsane.errors import ConfigError
from mzsane.files import load_torch
from mzsane.zoo.readers.archives import TarSource, ZipSource
from mzsane.zoo.readers.checkpoint import CheckpointReader

MUTATIONS = 2000
LIMIT = 20_000_000
SMALL = 60_000  # bytes; larger real files are thinned to their first tensors
_WATCHED = ("os.", "subprocess.", "shutil.", "socket.", "webbrowser.", "ctypes.dlopen")

watching = [False]
happened = []


def watch(event, arguments):
    """Note what a hostile pickle would do."""
    if watching[0] and event.startswith(_WATCHED) and event not in ("os.listdir", "os.scandir"):
        happened.append((event, arguments))


sys.addaudithook(watch)


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("true",)


def mutate(data, generator):
    """Return a broken version of a file."""
    changed = bytearray(data)
    kind = generator.randrange(6)
    if kind == 0:
        return bytes(changed[: generator.randrange(len(changed))])
    if kind == 1:
        start = generator.randrange(len(changed))
        del changed[start : start + generator.randrange(1, 200)]
    elif kind == 2:
        start, source = generator.randrange(len(changed)), generator.randrange(len(changed))
        changed[start:start] = changed[source : source + generator.randrange(1, 200)]
    else:
        # Heads, pickles and directories are small, and where the trouble is.
        reach = min(len(changed), generator.choice((40, 1500, len(changed))))
        for _ in range(generator.randrange(1, 12)):
            at = (
                generator.randrange(reach)
                if generator.random() < 0.5
                else len(changed) - 1 - generator.randrange(reach)
            )
            changed[at] = generator.randrange(256)
    return bytes(changed)


def mutate_pickle(data, generator):
    """Return a torch zip with a broken pickle and right checksums, which no directory check can notice."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, mutate(content, generator) if name.endswith("data.pkl") else content)
    return out.getvalue()


def save_npz(state):
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value.numpy() for name, value in state.items()})
    return buffer.getvalue()


def thin(path):
    """Return the small tensors of a real checkpoint."""
    return {name: value for name, value in load_torch(path.read_bytes()).items() if value.numel() < 600}


@pytest.fixture(scope="module")
def seeds(request, make_state, to_bytes):
    """Whole files of every form, made of real checkpoints where they are, else of random ones."""
    try:
        folder = request.getfixturevalue("real_checkpoints")
        paths = [sorted(folder.glob(f"{name}/*"))[0] for name in ("mnist_cnn_zoo", "fashion_mnist_trajectory")]
        states = [thin(path) for path in paths]
    except pytest.skip.Exception:
        states = [make_state(1)]
    seeds = []
    for state in states:
        wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "best_prec1": 91.7}
        for value in (state, wrapped):
            seeds += [to_bytes(value), to_bytes(value, _use_new_zipfile_serialization=False)]
        seeds += [save_npz(state), safetensors.torch.save(state)]
    assert max(map(len, seeds)) < SMALL
    return seeds


@pytest.mark.filterwarnings("ignore")
def test_no_broken_file_does_harm(seeds, to_bytes):
    generator = random.Random(0)
    reader = CheckpointReader(LIMIT)
    for data in seeds:
        for _ in range(3):
            assert reader.read(data)
    read, reasons = 0, []
    happened.clear()
    evil = {"state_dict": {"w": torch.ones(3)}, "extra": Evil()}
    seeds = [*seeds, to_bytes(evil), to_bytes(evil, _use_new_zipfile_serialization=False)]
    for number in range(MUTATIONS):
        data = seeds[number % len(seeds)]
        torch_zip = b"data.pkl" in data
        broken = mutate_pickle(data, generator) if torch_zip and number % 3 else mutate(data, generator)
        watching[0] = True
        try:
            states = reader.read(broken)
            read += 1
        except ConfigError as error:
            reasons.append(str(error))
        else:
            for state in states:
                assert all(bool(torch.isfinite(v).all()) for v in state.tensors.values() if v.is_floating_point())
        finally:
            watching[0] = False
    assert read + len(reasons) == MUTATIONS
    assert min(read, len(reasons)) > 20, "mutations that all do the same show nothing"
    assert all(reason and "\n" not in reason for reason in reasons)
    assert not happened


def test_the_watch_sees_what_it_watches_for():
    happened.clear()
    watching[0] = True
    try:
        pickle.loads(pickle.dumps(Evil()))
    finally:
        watching[0] = False
    assert [event for event, _ in happened] == ["os.system"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_no_broken_archive_does_harm(form, tmp_path, write_ray_zoo):
    write_ray_zoo(tmp_path / "zoo", models=1, epochs=(0,))
    whole = shutil.make_archive(str(tmp_path / "whole"), form, tmp_path, "zoo")
    generator = random.Random(0)
    with open(whole, "rb") as file:  # noqa: PTH123
        data = file.read()
    outcomes = {"read": 0, "refused": 0}
    for number in range(300):
        path = tmp_path / f"{number}.{form}"
        path.write_bytes(mutate(data, generator))
        try:
            source = ZipSource([path], LIMIT) if form == "zip" else TarSource(path, LIMIT)
            for name in source.names():
                source.read(name)
            outcomes["read"] += 1
        except ConfigError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 5
