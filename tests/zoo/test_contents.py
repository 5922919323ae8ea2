"""What a source holds is part of what is known of a zoo: no other folder's zoo, and no old one, without a word."""

import os
import shutil

import pytest

from mzsane.config import DownloadConfig, ExecutionConfig, ReadConfig
from mzsane.errors import ConfigError
from mzsane.fetch.sources import open_storage
from mzsane.zoo.contents import find_content
from mzsane.zoo.read import plan_read, read_zoo

SERIAL = ExecutionConfig(processes=1)


@pytest.fixture
def folder(tmp_path, make_state, to_bytes):
    (tmp_path / "zoo").mkdir()
    for number in range(3):
        (tmp_path / "zoo" / f"m{number}.pt").write_bytes(to_bytes(make_state(number)))
    return tmp_path / "zoo"


def test_a_relative_source_is_that_of_its_folder(folder, store, tmp_path, monkeypatch, make_state, to_bytes):
    config = ReadConfig(name="z", source="zoo")
    monkeypatch.chdir(tmp_path)
    first = read_zoo(config, store, SERIAL)
    (tmp_path / "other" / "zoo").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "other" / "zoo" / f"m{number}.pt").write_bytes(to_bytes(make_state(10 + number)))
    monkeypatch.chdir(tmp_path / "other")
    second = read_zoo(config, store, SERIAL)
    assert (first.manifest.counts["models"], second.manifest.counts["models"]) == (3, 2)
    same = {
        plan_read(ReadConfig(name="z", source=path)).ref for path in (str(folder), f"{folder}/", "../zoo", "./../zoo")
    }
    assert same == {first.ref}


@pytest.mark.parametrize("change", ["added", "removed", "written", "longer", "renamed", "metadata"])
def test_a_source_that_has_changed_is_not_read_from_memory(change, folder, store, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("file,test_acc\nm0.pt,0.5\n")
    settings = {"name": "z", "source": str(folder), "metadata": str(table)}
    first = read_zoo(ReadConfig(**settings), store, SERIAL)
    assert read_zoo(ReadConfig(**settings), store, SERIAL).ref == first.ref
    path = folder / "m0.pt"
    if change == "added":
        shutil.copy(path, folder / "m9.pt")
    elif change == "removed":
        path.unlink()
    elif change == "written":
        os.utime(path, (1, 1))
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"0")
    elif change == "renamed":
        path.rename(folder / "m7.pt")
    else:
        table.write_text("file,test_acc\nm1.pt,0.5\n")
    with pytest.raises(ConfigError, match=r"has changed since zoo z was read from it: .* set revision"):
        read_zoo(ReadConfig(**settings), store, SERIAL)
    if change == "added":
        again = read_zoo(ReadConfig(**settings, revision="2", max_rejected=1.0), store, SERIAL)
        assert again.manifest.counts["rejected"] == 1  # the copy


def test_litter_and_a_store_in_the_source_change_nothing(folder):
    config = ReadConfig(name="z", source=str(folder))
    before = find_content(config)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.pt").touch()
    artifact = folder / "store" / "zoo" / ("0" * 64)
    artifact.mkdir(parents=True)
    (artifact / "weights.safetensors").touch()
    assert find_content(config) == before


def test_remote_files_are_known_too():
    storage = open_storage("memory://content/zoo")
    storage.write("a.pt", b"a")
    config = ReadConfig(name="z", source="memory://content/zoo")
    before = find_content(config)
    assert (before.files, before.bytes) == (1, 1)
    assert find_content(config) == before
    storage.write("b.pt", b"b")
    assert find_content(config) != before


def test_what_is_out_of_reach_is_not_asked(tmp_path):
    assert find_content(ReadConfig(name="z", source=str(tmp_path / "nowhere"))) is None


def test_the_label_of_a_download_is_a_label():
    configs = [
        ReadConfig(name="z", download=DownloadConfig(name=name, source="http://localhost/zoo.zip"))
        for name in ("a", "b")
    ]
    assert plan_read(configs[0]).ref == plan_read(configs[1]).ref
