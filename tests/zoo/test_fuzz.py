"""Broken files of every form, archives, folders and tables: read or refused with a reason, never a crash, never code.

Few of each in the usual run; marked slow are the full numbers: 2,000 files, 600 archives, and 20 folders of good and
bad files through the command.
"""

import gzip
import io
import itertools
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from mzsane.config import ExecutionConfig, FilesConfig
from mzsane.config.reading import ReadConfig
from mzsane.errors import ConfigError
from mzsane.fetch.sources import open_source
from mzsane.problems.images.dataset import load_images
from mzsane.store.making import find_commit
from mzsane.store.serialisation import load_torch
from mzsane.zoo.formats.checkpoint import CheckpointReader
from mzsane.zoo.read import read_zoo

FEW, MANY = 300, 2000  # files
FEW_ARCHIVES, MANY_ARCHIVES = 80, 200  # of each form
FOLDERS = 10  # twice
SECONDS = 10.0  # for one file
GROWTH = 2**20  # kB of memory, of all together
LIMIT = 20_000_000
REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = 60_000  # bytes; larger real files are thinned to their first tensors
_WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.", "webbrowser.")

watching = [False]
happened = []


def watch(event, arguments):
    """Note what a hostile pickle would do."""
    if watching[0] and event.startswith(_WATCHED):
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


class Bounds:
    """Notes the longest time of one try, and the memory that all of them needed."""

    def __init__(self):
        self.before, self.longest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
        self.lines = 0  # too many, in what was said
        find_commit()  # git is asked once, by ourselves
        happened.clear()

    @contextmanager
    def watched(self):
        """Watch for what code would do, and take the time."""
        start = time.monotonic()
        watching[0] = True
        try:
            yield
        finally:
            watching[0] = False
            self.longest = max(self.longest, time.monotonic() - start)

    def hear(self, error):
        """Note a refusal."""
        self.lines += str(error).count("\n")

    def check(self, **seen):
        """Check the bounds, and print them."""
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before
        print(f"\n{seen}: longest {self.longest:.2f} s, {grown // 1024} MiB more memory, executed {len(happened)}")
        assert self.longest < SECONDS
        assert grown < GROWTH
        assert not self.lines
        assert not happened


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_no_broken_file_does_harm(count, seeds, to_bytes):
    generator = random.Random(0)
    reader = CheckpointReader(LIMIT)
    for data in seeds:
        for _ in range(3):
            assert reader.read(data)
    read, reasons = 0, []
    bounds = Bounds()
    evil = {"state_dict": {"w": torch.ones(3)}, "extra": Evil()}
    seeds = [*seeds, to_bytes(evil), to_bytes(evil, _use_new_zipfile_serialization=False)]
    for number in range(count):
        data = seeds[number % len(seeds)]
        torch_zip = b"data.pkl" in data
        broken = mutate_pickle(data, generator) if torch_zip and number % 3 else mutate(data, generator)
        try:
            with bounds.watched():
                states = reader.read(broken)
            read += 1
        except ConfigError as error:
            reasons.append(str(error))
        else:
            for state in states:
                assert all(bool(torch.isfinite(v).all()) for v in state.tensors.values() if v.is_floating_point())
    bounds.check(files=count, read=read, refused=len(reasons))
    assert read + len(reasons) == count
    assert min(read, len(reasons)) > count / 30, "mutations that all do the same show nothing"
    assert all(reason and "\n" not in reason for reason in reasons)


def test_the_watch_sees_what_it_watches_for():
    happened.clear()
    watching[0] = True
    try:
        pickle.loads(pickle.dumps(Evil()))
    finally:
        watching[0] = False
    assert [event for event, _ in happened] == ["os.system"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["zip", "tar", "gztar"])
@pytest.mark.parametrize("count", [FEW_ARCHIVES, pytest.param(MANY_ARCHIVES, marks=pytest.mark.slow)])
def test_no_broken_archive_does_harm(form, count, tmp_path, write_ray_zoo):
    write_ray_zoo(tmp_path / "zoo", models=1, epochs=(0,))
    whole = Path(shutil.make_archive(str(tmp_path / "whole"), form, tmp_path, "zoo"))
    generator = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    bounds = Bounds()
    for number in range(count):
        path = tmp_path / f"{number}{''.join(whole.suffixes)}"
        data = whole.read_bytes()
        if form == "gztar" and number % 2:  # what is packed is broken, and rightly packed
            path.write_bytes(gzip.compress(mutate(gzip.decompress(data), generator), 1))
        else:
            path.write_bytes(mutate(data, generator))
        try:
            with bounds.watched(), open_source(str(path), LIMIT) as source:
                for name in source.names():
                    try:
                        source.read(name)
                        outcomes["read"] += 1
                    except ConfigError as error:
                        bounds.hear(error)
                        outcomes["refused"] += 1
        except ConfigError as error:
            bounds.hear(error)
            outcomes["refused"] += 1
    bounds.check(archives=count, form=form, **outcomes)
    assert min(outcomes.values()) > 1


def fill(folder, generator, make_state, to_bytes, odd):
    """Write ten good checkpoints, and broken or hostile files beside them."""
    folder.mkdir(parents=True)
    for number in range(10):
        (folder / f"good_{number}.pt").write_bytes(to_bytes(make_state(1000 + number)))
    whole = [to_bytes(make_state(1)), to_bytes({"model": make_state(2)}), safetensors.torch.save(dict(make_state(3)))]
    whole += [save_npz(make_state(4)), to_bytes({"x": Evil()})]
    for number in range(odd):
        suffix = generator.choice((".pt", ".pth", ".ckpt", ".safetensors", ".npz", ".bin", ".safetensors.index.json"))
        content = mutate(generator.choice(whole), generator)
        (folder / f"{'abz'[number % 3]}_odd_{number}{suffix}").write_bytes(content)
    (folder / "loop.pt").symlink_to("loop.pt")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("count", "seed"), [(2, 1), *(pytest.param(FOLDERS, seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_folders_of_good_and_bad_files_are_zoos(count, seed, tmp_path, store, make_state, to_bytes, monkeypatch):
    """Through the command in the full run, as it is typed."""
    generator = random.Random(seed)
    bounds, made = Bounds(), 0
    monkeypatch.setenv("MZSANE_ROOT", str(tmp_path / "root"))
    for number in range(count):
        folder = fill(tmp_path / f"zoo-{number}", generator, make_state, to_bytes, odd=generator.randrange(1, 8))
        settings = tmp_path / f"zoo-{number}.yaml"
        settings.write_text(f"name: zoo-{number}\nsource: {folder}\n")
        if count == FOLDERS:
            command = [sys.executable, "-m", "flows.zoo", "make", str(settings), "--processes", "1"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
            assert done.returncode == 0, done.stderr[-2000:]
            assert "Traceback" not in done.stdout + done.stderr
        else:
            with bounds.watched():
                config = ReadConfig(name=f"zoo-{number}", source=str(folder))
                zoo = read_zoo(config, store, ExecutionConfig(processes=1))
            assert zoo.manifest.counts["checkpoints"] >= 10
        made += 1
    bounds.check(folders=count, zoos=made)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_no_broken_description_does_harm(count, tmp_path, make_store, write_ray_zoo, make_state, to_bytes):
    """The files that tell about models: params.json, result.json, tables of metadata, indexes of shards."""
    generator = random.Random(2)
    tuned = write_ray_zoo(tmp_path / "tuned", models=2, epochs=(0, 1))
    loose = tmp_path / "loose"
    loose.mkdir()
    for number in range(4):
        (loose / f"m{number}.pt").write_bytes(to_bytes(make_state(number)))
    table = {
        "csv": b"file,epoch,test_acc,split\nm0.pt,1,0.5,train\nm1.pt,1,0.4,val\nm2.pt,2,0.7,test\nm3.pt,2,0.8,train\n"
    }
    table["json"] = b'[{"file": "m0.pt", "epoch": 1, "test_acc": 0.5}, {"file": "m1.pt", "epoch": 3, "test_acc": 0.4}]'
    described = sorted(tuned.rglob("*.json"))
    whole = {path: path.read_bytes() for path in described}
    bounds, outcomes = Bounds(), {"read": 0, "refused": 0}
    for number in range(count):
        if number % 2:
            path = generator.choice(described)
            path.write_bytes(mutate(whole[path], generator))
            config = ReadConfig(name="zoo", source=str(tuned), revision=str(number))
        else:
            kind = generator.choice(list(table))
            (loose / f"table.{kind}").write_bytes(mutate(table[kind], generator))
            config = ReadConfig(name="zoo", source=str(loose), metadata=f"table.{kind}", revision=str(number))
        try:
            with bounds.watched():
                read_zoo(config, make_store(), ExecutionConfig(processes=1))
            outcomes["read"] += 1
        except ConfigError as error:
            bounds.hear(error)
            outcomes["refused"] += 1
        for path, data in whole.items():
            path.write_bytes(data)
    bounds.check(descriptions=count, **outcomes)
    assert min(outcomes.values()) > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_no_broken_image_does_harm(count, tmp_path):
    """A folder of pictures, or an npz, of which one file is broken: images, or one line that says which file."""
    generator = random.Random(3)
    drawn = np.random.default_rng(0)
    forms = {"png": [], "jpg": [], "bmp": []}
    for form, made in forms.items():
        buffer = io.BytesIO()
        Image.fromarray(drawn.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(
            buffer, "jpeg" if form == "jpg" else form
        )
        made.append(buffer.getvalue())
    for part, label, number in itertools.product(("train", "test"), ("cat", "dog"), range(12)):
        path = tmp_path / "images" / part / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(path)
    arrays = io.BytesIO()
    np.savez(arrays, images=drawn.integers(0, 255, (40, 12, 12, 3), dtype=np.uint8), labels=drawn.integers(0, 2, 40))
    bounds, outcomes = Bounds(), {"read": 0, "refused": 0}
    for number in range(count):
        odd = tmp_path / "images" / "train" / "cat" / f"odd.{(form := generator.choice(list(forms)))}"
        if number % 3:
            odd.write_bytes(mutate(forms[form][0], generator))
            config = FilesConfig(source="folder", train=str(tmp_path / "images"), classes=2)
        else:
            (tmp_path / "odd.npz").write_bytes(mutate(arrays.getvalue(), generator))
            config = FilesConfig(source="npz", train=str(tmp_path / "odd.npz"), classes=2)
        try:
            with bounds.watched():
                load_images.__wrapped__(config)
            outcomes["read"] += 1
        except ConfigError as error:
            bounds.hear(error)
            outcomes["refused"] += 1
        odd.unlink(missing_ok=True)
    bounds.check(images=count, **outcomes)
    assert min(outcomes.values()) > 0
