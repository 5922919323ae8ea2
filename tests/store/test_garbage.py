"""What a kill leaves at any moment: the next run uses it, or the garbage collection takes it, and nothing else goes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from flows.commands.app import main
from mzsane.errors import ConfigError, NewerArtifactError
from mzsane.store.artifacts import ArtifactStore, Work
from mzsane.store.garbage import collect_garbage

REPOSITORY = Path(__file__).resolve().parents[2]
WORK = Work("zoo", 1, {"models": 3})
OTHER = Work("tokens", 1, {"dim": 5})


@dataclass
class Place:
    """A store, and a second way to the names of its files."""

    store: ArtifactStore
    root: str
    client: Any = None

    def names(self) -> set[str]:
        if self.client is None:
            return {str(path.relative_to(self.root)) for path in Path(self.root).rglob("*") if path.is_file()}
        bucket = self.root.removeprefix("s3://").partition("/")[0]
        found = self.client.list_objects_v2(Bucket=bucket, Prefix="prefix/").get("Contents", [])
        return {item["Key"].removeprefix("prefix/") for item in found}

    def uploads(self) -> list[str]:
        if self.client is None:
            return []
        bucket = self.root.removeprefix("s3://").partition("/")[0]
        return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


@pytest.fixture
def own_folders(monkeypatch, tmp_path):
    """Give the test and its subprocesses a cache and a folder for temporary files of their own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("MZSANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture(params=["local", "s3"])
def place(request, own_folders, monkeypatch) -> Place:
    root, client = str(own_folders / "store"), None
    if request.param == "s3":
        endpoint = request.getfixturevalue("s3_endpoint")
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MZSANE_S3_ENDPOINT": endpoint,
        }.items():
            monkeypatch.setenv(name, value)
        bucket = f"b-{uuid.uuid4().hex}"
        client = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        )
        client.create_bucket(Bucket=bucket)
        root = f"s3://{bucket}/prefix"
    monkeypatch.setenv("MZSANE_ROOT", root)
    return Place(ArtifactStore.from_environment(), root, client)


# Runs of one large and three small chunks, and the ways to kill them. The kill is a real one, of the whole process;
# what is patched is only when. One process that has imported everything forks each run.
RUNS = """
    import functools, json, os, shutil, signal, sys
    import torch
    from mzsane.store import partial
    from mzsane.store import storage
    from mzsane.store.artifacts import ArtifactStore, Work
    from mzsane.config import ExecutionConfig
    from mzsane.metrics import NO_SINK
    from mzsane.zoo import shards

    torch.set_num_threads(1)
    shards.SHARD_BYTES = 2**21
    storage._S3_PIECES |= {"chunksize": 5 * 2**20}

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(owner, name, count=1, afterwards=False):
        original, calls = getattr(owner, name), []
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == count and not afterwards:
                die()
            result = original(*args, **kwargs)
            if len(calls) == count:
                die()
            return result
        setattr(owner, name, call)

    def arm(moment, local):
        if moment == "after the upload of a chunk, before its note":
            stop(ArtifactStore, "upload", afterwards=True)
        elif moment == "after the note of a chunk":
            stop(shards, "_unpack", 2)
        elif moment == "in the middle of writing":
            if local:
                stop(storage.Storage, "place")
            else:
                import s3fs
                original = s3fs.S3FileSystem._call_s3
                async def call(self, method, *args, **kwargs):
                    result = await original(self, method, *args, **kwargs)
                    return die() if method == "upload_part" else result
                s3fs.S3FileSystem._call_s3 = call
        elif moment == "with a small file half written":
            stop(os, "fsync", 3)
        elif moment == "before the manifest":
            stop(storage.Storage, "create")
        elif moment == "between manifest and tidying up":
            stop(partial.Partial, "clear")
        elif moment == "while tidying up":
            stop(shutil if local else partial.Partial, "rmtree" if local else "clear")
        elif moment == "in the check":
            stop(storage.Storage, "write", afterwards=True)

    def make(numbers):
        size = 3_000_000 if numbers[0] == 0 else 400
        weights = torch.arange(size, dtype=torch.float32).repeat(len(numbers), 1)
        rows = [{"model": f"{number:06d}", "epoch": 1} for number in numbers]
        return shards.ShardContent({"w": weights}, rows, rows, [], {"n": 1.0})

    def run(moment, cut):
        store, work = ArtifactStore.from_environment(), Work("zoo", 1, {"models": 3})
        arm(moment, bool(store.files.local_path("x")))
        store.check()
        if store.find(work.ref) is None:
            chunks = [(0,), *((1, 2, 3)[first : first + cut] for first in range(0, 3, cut))]
            names = [f"chunk-{cut}-{chunk[0]}" for chunk in chunks]
            sizes = [len(chunk) for chunk in chunks]
            one = ExecutionConfig(processes=1)
            parts = shards.write_shards(work, chunks, sizes, make, store, one, NO_SINK, "models", names)
            store.publish(work, parts.files(), parts.counts())

    for line in sys.stdin:
        moment, cut, environment = json.loads(line)
        child = os.fork()
        if child == 0:
            os.environ |= environment
            code = 1
            try:
                run(moment, cut)
                code = 0
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
MOMENTS = (
    "after the upload of a chunk, before its note",
    "after the note of a chunk",
    "in the middle of writing",
    "with a small file half written",
    "before the manifest",
    "between manifest and tidying up",
    "while tidying up",
    "in the check",
)


@pytest.fixture(scope="module")
def run():
    """Return the function that does a run, killed at a moment or not, and returns its exit code."""
    command = [sys.executable, "-c", textwrap.dedent(RUNS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as runs:

        def run(moment: str, cut: int) -> int:
            environment = {name: value for name, value in os.environ.items() if name.startswith(("MZSANE", "AWS"))}
            print(json.dumps([moment, cut, environment]), file=runs.stdin, flush=True)
            return int(runs.stdout.readline())

        yield run
        runs.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory) -> dict[str, str]:
    """Return the sha256 of the files of a run that nobody disturbed, with other chunks again."""
    root = str(tmp_path_factory.mktemp("undisturbed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MZSANE_ROOT", root)
        assert run("never", 3) == 0
    return {name: entry.sha256 for name, entry in ArtifactStore(root).open(WORK.ref).manifest.files.items()}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_leaves_nothing(place, own_folders, run, undisturbed, moment):
    """Killed, run again with other chunks, collected: the files are those of the manifest, the bits as ever."""
    if moment == "with a small file half written" and place.client is not None:
        pytest.skip("S3 has no file that is half written")
    assert run(moment, 1) == -signal.SIGKILL
    assert run("never", 2) == 0
    made = place.store.open(WORK.ref)
    collect_garbage(place.store, delete=True, age_hours=0)
    named = {f"{WORK.ref}/{entry.path}" for entry in made.manifest.files.values()}
    assert place.names() == {*named, f"{WORK.ref}/manifest.json"}
    assert place.uploads() == []
    assert not list((own_folders / "temporary").iterdir())
    assert not [path for path in own_folders.glob("cache/*") if path.name.startswith("unfinished")]
    if place.client is None:
        assert not list(Path(place.root).glob("partial/*/*"))
    assert collect_garbage(place.store, age_hours=0) == []
    assert {name: entry.sha256 for name, entry in made.manifest.files.items()} == undisturbed


def test_each_kind_of_garbage_is_listed_with_its_reason_and_nothing_else_goes(place):
    store, number = place.store, "0" * 32
    kept = store.publish(WORK, {"a.bin": b"abc"}, {})
    store.partial(OTHER).write("step-1.pt", b"to go on with")
    store.files.write(f"{OTHER.ref}/weights-000000000000.bin", b"uploaded, and noted in step-1")
    left = {
        f"partial/{WORK.ref}/chunk.json": "an unfinished file of an artifact that is out",
        f"partial/{WORK.ref}.{number}/chunk.json": "left of what a killed run was removing",
        f"partial/probe-{number}": "left of what a killed run was removing",
        f"{WORK.ref}/.a.bin.{number}": "a temporary file that a killed run was writing",
        f"partial/{OTHER.ref}/.step-2.pt.{number}": "a temporary file that a killed run was writing",
        f"{WORK.ref}/b-000000000000.bin": "a data file that the artifact's manifest does not name",
        f"zoo/{'f' * 64}/a-000000000000.bin": "a data file of an artifact that was never published",
    }
    theirs = ("notes.txt", "zoo/notes.txt", "photos/2024/a.jpg", f"zoo/{'f' * 64}.txt", f"zoo/x/{'f' * 64}/a.bin")
    for name in (*left, *theirs):
        store.files.write(name, b"12345")
    before = place.names()
    found = collect_garbage(store, age_hours=0)
    assert {each.name: each.reason for each in found} == left
    assert {each.bytes for each in found} == {5}
    assert place.names() == before  # a dry run
    assert collect_garbage(store) == []  # all of it is of a minute ago, and may be work that is running
    assert collect_garbage(store, delete=True, age_hours=0) == found
    assert place.names() == before - set(left)
    assert kept.path("a.bin").read_bytes() == b"abc"
    assert store.partial(OTHER).read("step-1.pt") == b"to go on with"


def test_work_in_which_one_file_is_new_is_left_alone_whole(own_folders):
    store = ArtifactStore(str(own_folders / "store"))
    store.publish(WORK, {"a.bin": b"abc"}, {})
    for name in (f"partial/{WORK.ref}/chunk-1.json", f"partial/{WORK.ref}/chunk-2.json"):
        store.files.write(name, b"12345")
    old = time.time() - 30 * 3600
    for path in Path(store.root).rglob("*"):
        os.utime(path, (old, old))
    assert len(collect_garbage(store)) == 2
    os.utime(Path(store.root, f"partial/{WORK.ref}/chunk-2.json"))
    assert collect_garbage(store, delete=True) == []
    assert len(collect_garbage(store, age_hours=0)) == 2


def test_an_artifact_whose_manifest_cannot_be_read_is_left_alone(own_folders):
    store = ArtifactStore(str(own_folders / "store"))
    store.files.write(f"{WORK.ref}/manifest.json", b'{"schema_version": 9}')
    store.files.write(f"{WORK.ref}/a-000000000000.bin", b"abc")
    with pytest.raises(NewerArtifactError):
        store.open(WORK.ref)
    assert collect_garbage(store, age_hours=0) == []


def test_temporary_folders_of_this_user_go_when_they_are_old(own_folders):
    store = ArtifactStore(str(own_folders / "store"))
    for name in ("mzsane-abc123", "mzsane-ranks-xyz", "other-abc"):
        (own_folders / "temporary" / name).mkdir()
        (own_folders / "temporary" / name / "archive.tar").write_bytes(bytes(1000))
    assert collect_garbage(store, delete=True) == []
    assert sorted(each.bytes for each in collect_garbage(store, delete=True, age_hours=0)) == [1000, 1000]
    assert [path.name for path in (own_folders / "temporary").iterdir()] == ["other-abc"]


def test_the_command_lists_and_removes(place, capsys):
    place.store.files.write(f"partial/{WORK.ref}.{'0' * 32}/chunk", b"12345")
    assert main(["gc", "--age", "0"]) == 0
    assert "1 files, 5 bytes would go: add --delete" in capsys.readouterr().out
    assert len(place.names()) == 1
    assert main(["gc", "--age", "0", "--delete"]) == 0
    assert "1 files, 5 bytes removed" in capsys.readouterr().out
    assert place.names() == set()
    assert main(["gc"]) == 0
    assert capsys.readouterr().out == f"nothing to remove in {place.store.root}\n"


class TestCache:
    @pytest.fixture
    def copies(self, own_folders):
        """Make a cache with three copies of 1 kB that were last used days ago, the first most long ago."""
        folder = own_folders / "cache"
        folder.mkdir()
        for days, name in enumerate("cba", start=1):
            (folder / name).write_bytes(bytes(1024))
            os.utime(folder / name, (time.time() - 86400 * days,) * 2)
        return folder

    def test_the_least_recently_used_copies_go(self, copies, monkeypatch):
        from mzsane.store.cache import Cache

        monkeypatch.setenv("MZSANE_CACHE_GIB", str(2048 / 2**30))
        Cache().touch(copies / "a")
        Cache().trim()
        assert sorted(path.name for path in copies.iterdir()) == ["a", "c"]

    def test_what_was_used_just_now_stays_whatever_the_limit(self, copies, monkeypatch):
        from mzsane.store.cache import Cache

        monkeypatch.setenv("MZSANE_CACHE_GIB", "0")
        Cache().touch(copies / "b")
        Cache().trim()
        assert [path.name for path in copies.iterdir()] == ["b"]
        monkeypatch.setenv("MZSANE_CACHE_GIB", "much")
        with pytest.raises(ConfigError, match="MZSANE_CACHE_GIB='much'"):
            Cache().trim()

    def test_the_default_is_for_its_user_alone(self, own_folders, monkeypatch):
        from mzsane.errors import StoreError
        from mzsane.store.cache import Cache, default_cache

        monkeypatch.delenv("MZSANE_CACHE")
        folder = Cache().folder
        assert folder == default_cache()
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)
        assert default_cache().stat().st_mode & 0o777 == 0o700
        folder.rmdir()
        (own_folders / "elsewhere").mkdir()
        folder.symlink_to(own_folders / "elsewhere")
        with pytest.raises(StoreError, match="set MZSANE_CACHE to a folder of your own"):
            default_cache()
