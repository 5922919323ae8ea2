"""Giving a file its name first, on file systems with hard links and without."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mzsane.store.artifacts import ArtifactStore, Work
from mzsane.store.storage import Storage


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def no_links(request, monkeypatch):
    """Make the operating system refuse hard links, as exFAT, SMB and some FUSE file systems do."""

    def refuse(*_, **__):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


def test_an_artifact_is_published_and_the_first_one_wins(no_links, tmp_path):
    store, work = ArtifactStore(str(tmp_path)), Work("zoo", 1, {})
    first = store.publish(work, {"a.bin": b"mine"}, {})
    second = store.publish(work, {"a.bin": b"yours"}, {})
    assert second.manifest == first.manifest
    assert second.path("a.bin").read_bytes() == b"mine"
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"manifest.json", first.manifest.files["a.bin"].path}


def test_one_of_many_writers_wins(no_links, tmp_path):
    storage = Storage(str(tmp_path))
    for turn in range(20):
        start = threading.Barrier(8)

        def create(number, turn=turn, start=start):
            start.wait()
            return storage.create(f"{turn}/x", bytes([number]) * 1000)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create, range(8)))
        assert won.count(True) == 1
        assert storage.read(f"{turn}/x") == bytes([won.index(True)]) * 1000
        assert [path.name for path in (tmp_path / str(turn)).iterdir()] == ["x"]


def test_the_marker_of_a_killed_writer_stops_nobody_for_long(no_links, tmp_path):
    (tmp_path / ".x.first").touch()
    os.utime(tmp_path / ".x.first", (time.time() - 100,) * 2)
    assert Storage(str(tmp_path)).create("x", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_other_errors_are_told_as_they_are(monkeypatch, tmp_path):
    from mzsane.errors import StoreError

    def fail(*_, **__):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(StoreError, match="input/output error"):
        Storage(str(tmp_path)).create("x", b"data")
    assert not list(tmp_path.iterdir())
