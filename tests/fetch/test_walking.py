"""What is below a folder, links followed; what is left out is told."""

import os
from pathlib import Path

import pytest

from mzsane.errors import ConfigError
from mzsane.fetch.sources import FolderSource, find_advice, open_source, open_storage
from mzsane.fetch.walking import walk_folder

LIMIT = 10**6


@pytest.fixture
def runs(tmp_path):
    for name in ("a", "b/c"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "m.pt").write_bytes(name.encode())
    return tmp_path / "runs"


def test_links_to_folders_are_followed(tmp_path, runs):
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    (zoo / "one").symlink_to(runs / "a")
    (zoo / "more").symlink_to(runs / "b", target_is_directory=True)
    (zoo / "file.pt").symlink_to(runs / "a" / "m.pt")
    found = walk_folder(zoo, "zoo")
    assert found.names == ["file.pt", "more/c/m.pt", "one/m.pt"]
    assert found.refused == {}
    source = FolderSource(str(zoo), LIMIT)
    assert [source.read(name) for name in source.names()] == [b"a", b"b/c", b"a"]


def test_a_folder_is_listed_once_and_under_its_own_name(runs):
    (runs / "0-link").symlink_to(runs / "a")
    (runs / "loop").symlink_to(runs)
    (runs / "b" / "up").symlink_to(runs / "b")
    (runs / "x").symlink_to(runs / "y")
    (runs / "y").symlink_to(runs / "x")
    found = walk_folder(runs, "runs")
    assert found.names == ["a/m.pt", "b/c/m.pt", "x", "y"]
    assert found.refused == {
        "0-link": "a link to a folder that is listed already: a",
        "loop": "a link to a folder that is listed already: the source itself",
        "b/up": "a link to a folder that is listed already: b",
    }


def test_links_that_lead_in_circles_between_folders_end(tmp_path):
    for name, other in (("p", "q"), ("q", "p")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "other").symlink_to(tmp_path / other)
    (tmp_path / "p" / "m.pt").touch()
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    (zoo / "start").symlink_to(tmp_path / "p")
    found = walk_folder(zoo, "zoo")
    assert found.names == ["start/m.pt"]
    assert set(found.refused) == {"start/other/other"}


@pytest.mark.parametrize("target", ["m.pt", "nowhere.pt"])
def test_a_link_without_an_end_is_its_own_problem(target, runs):
    (runs / "m.pt").symlink_to(runs / target)
    source = FolderSource(str(runs), LIMIT)
    assert "m.pt" in source.names()
    with pytest.raises(ConfigError, match="leads to itself" if target == "m.pt" else "target is not there"):
        source.read("m.pt")


def test_names_that_are_no_text_are_told(runs):
    Path(os.fsdecode(os.fsencode(runs) + b"/\xff")).mkdir()
    Path(os.fsdecode(os.fsencode(runs) + b"/\xfe.pt")).touch()
    source = FolderSource(str(runs), LIMIT)
    assert source.names() == ["a/m.pt", "b/c/m.pt"]
    assert dict(source.refused()) == dict.fromkeys(["\\udcff", "\\udcfe.pt"], "a name that is not UTF-8: rename it")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_listed_is_told(runs):
    (runs / "a").chmod(0)
    try:
        source = FolderSource(str(runs), LIMIT)
        assert source.names() == ["b/c/m.pt"]
        assert dict(source.refused()) == {"a": "a folder that cannot be listed: Permission denied"}
    finally:
        (runs / "a").chmod(0o755)


def test_one_file_is_a_source(runs):
    with open_source(str(runs / "a" / "m.pt"), LIMIT) as source:
        assert source.names() == ["m.pt"]
        assert source.read("m.pt") == b"a"
        assert source.address == str(runs / "a")


def test_one_object_is_a_source():
    storage = open_storage("memory://bucket/zoo")
    for name in ("m0.pt", "m1.pt", "d//m2.pt"):
        storage.write(name, name.encode())
    with open_source("memory://bucket/zoo/m0.pt", LIMIT) as source:
        assert source.names() == ["m0.pt"]
        assert source.read("m0.pt") == b"m0.pt"


@pytest.mark.parametrize(
    ("address", "told", "untold"),
    [
        ("s3://a/b", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"),
        ("hf://a/b", "HF_TOKEN", "AWS"),
        ("gs://a", "network", "HF_TOKEN"),
    ],
)
def test_advice_is_of_the_protocol(address, told, untold):
    assert told in find_advice(address)
    assert untold not in find_advice(address)
