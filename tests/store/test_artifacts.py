"""The artifact store, on a local folder and on S3: what is visible when, who wins, and what every failure says."""

import hashlib
import json
import os
import pickle
import platform
import random
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs

from mzsane.errors import ConfigError, CorruptArtifactError, MzsaneError, NewerArtifactError, StoreError
from mzsane.fetch.sources import open_storage
from mzsane.store.artifacts import Artifact, ArtifactRef, ArtifactStore, Work
from mzsane.store.making import find_commit, record_making
from mzsane.store.storage import Storage

REPOSITORY = Path(__file__).resolve().parents[2]
WORK = Work("zoo", 1, {"models": 3, "seed": 5}, seed=5)
FILES = {"index.parquet": b"index" * 50, "weights.safetensors": b"weights" * 500}


@dataclass
class Place:
    """A store and a second way to its files, for looking and for damage."""

    store: ArtifactStore
    client: Any = None
    bucket: str = ""
    folder: Path = Path()

    def names(self) -> set[str]:
        """Return all files below the root, hidden ones too."""
        if self.client is None:
            return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix="prefix/")
        return {item["Key"].removeprefix("prefix/") for page in pages for item in page.get("Contents", [])}

    def put(self, name: str, data: bytes) -> None:
        """Replace a file's bytes."""
        if self.client is None:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(data)
        else:
            self.client.put_object(Bucket=self.bucket, Key=f"prefix/{name}", Body=data)

    def get(self, name: str) -> bytes:
        """Return a file's bytes."""
        if self.client is None:
            return (self.folder / name).read_bytes()
        return self.client.get_object(Bucket=self.bucket, Key=f"prefix/{name}")["Body"].read()

    def delete(self, name: str) -> None:
        """Remove a file."""
        if self.client is None:
            (self.folder / name).unlink()
        else:
            self.client.delete_object(Bucket=self.bucket, Key=f"prefix/{name}")


def point_to(monkeypatch, endpoint, root, key="test", secret="test") -> None:
    """Set the environment that a user of S3 sets."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MZSANE_S3_ENDPOINT", endpoint)
    monkeypatch.setenv("MZSANE_ROOT", root)


def connect(endpoint, key="test", secret="test"):
    return boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1"
    )


@pytest.fixture(scope="session")
def s3_client(s3_endpoint):
    return connect(s3_endpoint)


@pytest.fixture
def s3(monkeypatch, tmp_path, s3_endpoint, s3_client) -> Place:
    bucket = f"b-{uuid.uuid4().hex}"
    s3_client.create_bucket(Bucket=bucket)
    point_to(monkeypatch, s3_endpoint, f"s3://{bucket}/prefix")
    monkeypatch.setenv("MZSANE_CACHE", str(tmp_path / "cache"))
    return Place(ArtifactStore.from_environment(), s3_client, bucket)


@pytest.fixture
def local(tmp_path) -> Place:
    return Place(ArtifactStore(str(tmp_path / "store")), folder=tmp_path / "store")


@pytest.fixture(params=["local", "s3"])
def place(request) -> Place:
    return request.getfixturevalue(request.param)


def read_all(artifact: Artifact) -> dict[str, bytes]:
    return {name: artifact.path(name).read_bytes() for name in artifact.manifest.files}


def stored_name(artifact: Artifact, name: str) -> str:
    return f"{artifact.ref}/{artifact.manifest.files[name].path}"


@contextmanager
def refused(*parts: str, kind: type[MzsaneError] = StoreError):
    """Expect an error of exactly this kind, in one line, with these parts."""
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


class TestFingerprint:
    def test_names_kind_version_config_and_inputs(self):
        zoo = ArtifactRef(kind="zoo", fingerprint="0" * 64)
        other = ArtifactRef(kind="zoo", fingerprint="1" * 64)
        works = [
            Work("tokens", 1, {"dim": 51}, {"zoo": zoo}),
            Work("token", 1, {"dim": 51}, {"zoo": zoo}),
            Work("tokens", 2, {"dim": 51}, {"zoo": zoo}),
            Work("tokens", 1, {"dim": 52}, {"zoo": zoo}),
            Work("tokens", 1, {"dim": 51, "x": None}, {"zoo": zoo}),
            Work("tokens", 1, {"dim": 51}, {"zoo": other}),
            Work("tokens", 1, {"dim": 51}, {"zoos": zoo}),
            Work("tokens", 1, {"dim": 51}),
        ]
        assert len({work.ref.fingerprint for work in works}) == len(works)

    def test_does_not_depend_on_order_or_on_the_seed_for_the_manifest(self):
        a, b = ArtifactRef(kind="zoo", fingerprint="0"), ArtifactRef(kind="zoo", fingerprint="1")
        one = Work("x", 1, {"p": {"q": 1, "r": [1, 2]}, "s": 2}, {"a": a, "b": b})
        other = Work("x", 1, {"s": 2, "p": {"r": (1, 2), "q": 1}}, {"b": b, "a": a}, seed=3)
        assert one.ref == other.ref
        assert Work("x", 1, {"p": {"q": 1, "r": [2, 1]}, "s": 2}, {"a": a, "b": b}).ref != one.ref

    def test_is_the_same_on_every_machine(self):
        text = '{"config":{"models":3,"seed":5},"inputs":{},"kind":"zoo","version":1}'
        assert WORK.ref.fingerprint == hashlib.sha256(text.encode()).hexdigest()


class TestPublish:
    def test_opens_with_the_same_bytes(self, place, tmp_path):
        (tmp_path / "on-disk").write_bytes(b"from a path")
        assert place.store.find(WORK.ref) is None
        published = place.store.publish(WORK, {**FILES, "log.tar.gz": tmp_path / "on-disk"}, {"models": 3})
        found = place.store.find(WORK.ref)
        assert found.manifest == published.manifest
        assert read_all(found) == {**FILES, "log.tar.gz": b"from a path"}
        assert found.path("log.tar.gz").name.endswith("gz")

    def test_manifest_says_what_it_is(self, place):
        zoo = place.store.publish(WORK, FILES, {"models": 3}).ref
        work = Work("tokens", 4, {"dim": 51}, {"zoo": zoo}, seed=9)
        artifact = place.store.publish(work, {"a.bin": b"abc"}, {"filled": 0.5})
        manifest = json.loads(place.get(f"{work.ref}/manifest.json"))
        assert {
            key: manifest[key] for key in ("kind", "fingerprint", "version", "config", "inputs", "seed", "counts")
        } == {
            "kind": "tokens",
            "fingerprint": work.ref.fingerprint,
            "version": 4,
            "config": {"dim": 51},
            "inputs": {"zoo": str(zoo)},
            "seed": 9,
            "counts": {"filled": 0.5},
        }
        assert manifest["files"]["a.bin"]["sha256"] == hashlib.sha256(b"abc").hexdigest()
        assert manifest["files"]["a.bin"]["bytes"] == 3
        assert manifest["libraries"]["torch"].startswith("2.")
        assert artifact.address == f"{place.store.root}/tokens/{work.ref.fingerprint}"

    def test_manifest_says_how_it_was_made(self, place):
        before = datetime.now(UTC).replace(microsecond=0)
        with record_making("digits"), record_making("a stage within", threads=3):
            made = place.store.publish(WORK, {"a.bin": b"abc"}, {}).manifest.made
        assert (made.name, made.threads, made.host) == ("digits", 3, platform.node())
        assert before <= datetime.fromisoformat(made.ended) <= datetime.now(UTC)
        assert 0 <= made.seconds < 600
        assert made.commit == find_commit()
        plain = place.store.publish(replace(WORK, seed=1, config={"other": 1}), {"a.bin": b"abc"}, {}).manifest.made
        assert (plain.name, plain.seconds, plain.threads) == (None, None, None)

    def test_is_invisible_until_the_manifest_is_there(self, place):
        # Counts that are not JSON stop the publishing at the last moment: all data files are up, the manifest is not.
        with pytest.raises(Exception, match="serialize"):
            place.store.publish(WORK, FILES, {"models": object()})
        assert len([name for name in place.names() if name.startswith(str(WORK.ref))]) == len(FILES)
        assert not place.store.exists(WORK.ref)
        assert place.store.find(WORK.ref) is None
        with refused("is not there", kind=CorruptArtifactError):
            place.store.open(WORK.ref)
        place.store.publish(WORK, FILES, {})
        assert read_all(place.store.open(WORK.ref)) == FILES

    def test_first_of_two_writers_wins(self, place):
        first = place.store.publish(WORK, {"a.bin": b"mine", "same.bin": b"same"}, {"writer": 1})
        second = place.store.publish(WORK, {"a.bin": b"yours", "same.bin": b"same", "b.bin": b"more"}, {"writer": 2})
        assert second.manifest == first.manifest
        assert read_all(second) == {"a.bin": b"mine", "same.bin": b"same"}
        assert place.names() == {f"{WORK.ref}/manifest.json"} | {
            stored_name(first, name) for name in ("a.bin", "same.bin")
        }

    def test_race_of_eight_writers_gives_one_artifact(self, place):
        for turn in range(3):
            work = Work("zoo", 1, {"turn": turn})
            start, done = threading.Barrier(9), threading.Event()

            def publish(number, work=work, start=start):
                files = {"a.bin": bytes([number]) * 40_000, "b.bin": bytes([number // 4]) * 40_000, "c.bin": b"all"}
                start.wait()
                return place.store.publish(work, files, {"writer": number})

            def watch(work=work, start=start, done=done):
                start.wait()
                seen = []
                while not done.is_set():
                    if found := place.store.find(work.ref):
                        read_all(found)
                        seen.append(found.manifest)
                return seen

            with ThreadPoolExecutor(9) as pool:
                watching = pool.submit(watch)
                try:
                    results = [future.result() for future in [pool.submit(publish, number) for number in range(8)]]
                finally:
                    done.set()
                seen = watching.result()
            winner = results[0]
            assert all(manifest == winner.manifest for manifest in [*seen, *(each.manifest for each in results)])
            number = winner.manifest.counts["writer"]
            assert read_all(winner)["a.bin"] == bytes([number]) * 40_000
            names = {name for name in place.names() if name.startswith(str(work.ref))}
            assert names == {f"{work.ref}/manifest.json"} | {
                stored_name(winner, name) for name in winner.manifest.files
            }


class TestLargeFiles:
    def test_a_function_writes_the_file(self, place):
        artifact = place.store.publish(WORK, {"a.bin": lambda path: path.write_bytes(b"abc" * 10**6)}, {})
        assert artifact.path("a.bin").read_bytes() == b"abc" * 10**6
        assert {name for name in place.names() if "manifest" not in name} == {stored_name(artifact, "a.bin")}

    def test_a_function_that_fails_leaves_nothing(self, place, tmp_path):
        def fail(path):
            path.write_bytes(b"half")
            raise ZeroDivisionError

        for attempt in (
            lambda: place.store.upload(WORK, "a.bin", fail),
            lambda: place.store.partial(WORK).write("a", fail),
        ):
            with pytest.raises(ZeroDivisionError):
                attempt()
        assert place.names() == set()
        assert not list(tmp_path.glob("cache/*"))

    def test_unfinished_files_of_any_size_are_written_and_fetched(self, place):
        partial = place.store.partial(WORK)
        for data in (b"", b"abc", os.urandom(3 * 2**20 + 5)):
            partial.write("state", lambda path, data=data: path.write_bytes(data))
            assert partial.read("state") == data
            with partial.fetch("state") as path:
                assert path.read_bytes() == data
            assert not path.exists()
        partial.write("state", b"as bytes")
        with partial.fetch("state") as path:
            assert path.read_bytes() == b"as bytes"

    @pytest.mark.parametrize("damage", [b"", b"short", b"x" * 40])
    def test_a_damaged_unfinished_file_is_noticed_and_removed(self, place, damage):
        partial = place.store.partial(WORK)
        for attempt in (lambda: partial.read("state"), lambda: partial.fetch("state").__enter__()):
            place.put(f"partial/{WORK.ref}/state", damage)
            with refused("was damaged; it is removed", kind=CorruptArtifactError):
                attempt()
            assert partial.names() == set()

    def test_memory_does_not_hold_the_file(self, tmp_path):
        """200 MB are written, hashed, verified and read in a tenth of that, beside the tensors themselves."""
        command = [sys.executable, "-c", textwrap.dedent(LARGE), str(tmp_path / "store")]
        found = subprocess.run(command, check=True, timeout=120, cwd=REPOSITORY, capture_output=True, text=True)
        assert all(int(grown) < 20 * 2**10 for grown in found.stdout.split()), found.stdout


LARGE = """
    import functools, resource, sys
    import torch
    from mzsane.store.artifacts import ArtifactStore, Work
    from mzsane.store.serialisation import load_tensor_file, save_tensor_file

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    tensors = {str(number): torch.full((2_500_000,), float(number)) for number in range(20)}
    store, work, begun = ArtifactStore(sys.argv[1]), Work("zoo", 1, {}), peak()
    write = functools.partial(save_tensor_file, tensors=tensors)
    store.partial(work).write("state", functools.partial(torch.save, tensors))
    with store.partial(work).fetch("state"):
        print(peak() - begun)
    artifact = store.publish(work, {"w.safetensors": write}, {})
    print(peak() - begun)
    del tensors, write
    loaded, _ = load_tensor_file(artifact.path("w.safetensors"))
    assert loaded["7"][5] == 7
    print(peak() - begun)
"""


class TestProcesses:
    def test_an_artifact_crosses_by_name_and_is_opened_once(self, place, monkeypatch):
        files = {f"weights-{number:05d}.bin": bytes([number]) for number in range(100)}
        artifact = place.store.publish(WORK, files, {})
        pickled = pickle.dumps(artifact)
        assert len(pickled) < 4000 < len(artifact.manifest.model_dump_json())
        first = pickle.loads(pickled)
        place.delete(f"{WORK.ref}/manifest.json")
        second = pickle.loads(pickled)
        assert first.manifest == second.manifest == artifact.manifest
        assert second.path("weights-00003.bin").read_bytes() == b"\x03"


class TestDamage:
    @pytest.mark.parametrize("damage", ["changed", "truncated", "empty"])
    def test_changed_file_is_noticed(self, place, damage):
        artifact = place.store.publish(WORK, FILES, {})
        name = stored_name(artifact, "weights.safetensors")
        data = FILES["weights.safetensors"]
        changed = {"changed": data[:-1] + b"?", "truncated": data[:-1], "empty": b""}[damage]
        place.put(name, changed)
        with refused("sha256", name, f"{len(changed)} bytes", "rerun", kind=CorruptArtifactError):
            place.store.open(WORK.ref).path("weights.safetensors")
        assert artifact.path("index.parquet").read_bytes() == FILES["index.parquet"]

    def test_missing_file_is_noticed(self, place):
        artifact = place.store.publish(WORK, FILES, {})
        place.delete(stored_name(artifact, "index.parquet"))
        with refused("index-", "missing", kind=CorruptArtifactError):
            artifact.path("index.parquet")

    def test_unknown_file_is_refused_with_those_there_are(self, place):
        artifact = place.store.publish(WORK, FILES, {})
        with refused("has no file x.bin; it has index.parquet, weights.safetensors", kind=CorruptArtifactError):
            artifact.path("x.bin")

    def test_changed_cached_copy_is_never_returned(self, s3, tmp_path):
        artifact = s3.store.publish(WORK, FILES, {})
        cached = artifact.path("index.parquet")
        assert cached.is_relative_to(tmp_path / "cache")
        cached.write_bytes(b"bad" + cached.read_bytes()[3:])
        assert artifact.path("index.parquet").read_bytes() == FILES["index.parquet"]
        cached.write_bytes(b"worse")
        s3.put(stored_name(artifact, "index.parquet"), b"bad too")
        with refused("sha256", kind=CorruptArtifactError):
            artifact.path("index.parquet")
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [cached.name]

    def test_good_cached_copy_saves_the_download(self, s3):
        artifact = s3.store.publish(WORK, FILES, {})
        path = artifact.path("index.parquet")
        s3.delete(stored_name(artifact, "index.parquet"))
        assert artifact.path("index.parquet") == path

    def test_broken_manifest_is_noticed(self, place):
        place.store.publish(WORK, FILES, {})
        name = f"{WORK.ref}/manifest.json"
        good = place.get(name)
        broken = [
            b"",
            good[: len(good) // 2],
            b"<html>not found</html>",
            b"\xff\x00\x80",
            b'{"kind": "zoo"}',
            b"[]",
            b'{"schema_version": 1}',
            b"[" * 99_999,
        ]
        for data in broken:
            place.put(name, data)
            with refused("manifest.json is not a manifest", "rerun", kind=CorruptArtifactError):
                place.store.find(WORK.ref)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"schema_version": 2}, "manifest schema 2, this mzsane reads 1"),
            ({"schema_version": 2, "new": 1, "files": {"a": {"path": "a", "blake3": "0"}}}, "manifest schema 2"),
            ({"schema_version": "2.1"}, "manifest schema '2.1'"),
            ({"lineage": ["a"]}, "fields that this mzsane does not know (lineage)"),
            ({"files": {"a": {"path": "a", "bytes": 1, "sha256": "0", "rows": 3}}}, "(files.a.rows)"),
        ],
    )
    def test_newer_manifest_is_told_as_newer(self, local, changes, said):
        local.store.publish(WORK, FILES, {})
        name = f"{WORK.ref}/manifest.json"
        local.put(name, json.dumps({**json.loads(local.get(name)), **changes}).encode())
        for attempt in (lambda: local.store.find(WORK.ref), lambda: local.store.publish(WORK, FILES, {})):
            with pytest.raises(NewerArtifactError) as caught:
                attempt()
            assert said in str(caught.value)
            assert "remove" not in str(caught.value)
            assert not isinstance(caught.value, CorruptArtifactError)

    def test_manifest_of_another_artifact_is_noticed(self, place):
        other = Work("zoo", 1, {"models": 4})
        place.store.publish(WORK, FILES, {})
        place.put(f"{other.ref}/manifest.json", place.get(f"{WORK.ref}/manifest.json"))
        with refused("belongs to another artifact", kind=CorruptArtifactError):
            place.store.find(other.ref)


class TestPartial:
    def test_files_are_listed_read_replaced_and_removed(self, place):
        partial = place.store.partial(WORK)
        assert partial.names() == set()
        partial.write("step-1.pt", b"one")
        partial.write("step-2.pt", b"two")
        partial.write("step-1.pt", b"one again")
        assert partial.names() == {"step-1.pt", "step-2.pt"}
        assert partial.read("step-1.pt") == b"one again"
        partial.remove("step-1.pt")
        partial.remove("step-1.pt")
        assert partial.names() == {"step-2.pt"}
        with pytest.raises(FileNotFoundError):
            partial.read("step-1.pt")
        partial.clear()
        partial.clear()
        assert partial.names() == set()
        assert place.names() == set()

    def test_are_no_artifact_and_go_when_theirs_is_published(self, place):
        other = place.store.partial(Work("zoo", 1, {"models": 4}))
        other.write("chunk", b"theirs")
        partial = place.store.partial(WORK)
        partial.write("chunk", b"mine")
        assert not place.store.exists(WORK.ref)
        place.store.publish(WORK, FILES, {})
        assert partial.names() == set()
        assert other.names() == {"chunk"}

    def test_reader_sees_old_or_new_never_a_mixture(self, place):
        partial = place.store.partial(WORK)
        versions = {bytes([i]) * 300_000 for i in range(4)}
        partial.write("state", bytes(300_000))
        stop = threading.Event()

        def read():
            seen = 0
            while not stop.is_set():
                assert partial.read("state") in versions
                assert partial.names() == {"state"}
                seen += 1
            return seen

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            for i in range(24):
                partial.write("state", bytes([i % 4]) * 300_000)
            stop.set()
            assert reading.result() > 0

    def test_publishing_while_another_still_works_on_the_same_fails_neither(self, place):
        """Two runs share a zoo: one finishes and tidies up while the other saves its next chunk."""
        for turn in range(30 if place.client is None else 3):
            work, done = Work("zoo", 1, {"turn": turn}), threading.Event()

            def save(work=work, done=done):
                chunk = 0
                while not done.is_set():
                    place.store.partial(work).write(f"chunk-{chunk % 20}", b"x" * 100)
                    chunk += 1

            with ThreadPoolExecutor(2) as pool:
                saving = [pool.submit(save) for _ in range(2)]
                time.sleep(0.01)
                try:
                    place.store.publish(work, FILES, {})
                finally:
                    done.set()
                for each in saving:
                    each.result()

    def test_unfinished_write_is_not_listed(self, local):
        local.put(f"partial/{WORK.ref}/.step-1.pt.0123", b"half")
        assert local.store.partial(WORK).names() == set()
        local.store.publish(WORK, FILES, {})
        assert not any(name.startswith("partial") for name in local.names())


class TestRoot:
    def test_check_leaves_nothing(self, place):
        place.store.check()
        assert place.names() == set()

    def test_default_is_a_folder_beside_the_work(self, monkeypatch, tmp_path):
        monkeypatch.delenv("MZSANE_ROOT", raising=False)
        monkeypatch.chdir(tmp_path)
        assert ArtifactStore.from_environment().root == str(tmp_path / ".mzsane" / "store")

    def test_path_and_file_url_are_the_same_place(self, tmp_path):
        ArtifactStore(str(tmp_path)).publish(WORK, FILES, {})
        assert read_all(ArtifactStore(f"file://{tmp_path}/").open(WORK.ref)) == FILES

    def test_unreachable_server(self, monkeypatch, tmp_path):
        monkeypatch.setattr("mzsane.store.file_systems.PATIENCE", 1.0)
        point_to(monkeypatch, "http://127.0.0.1:1", "s3://bucket/prefix")
        store = ArtifactStore.from_environment()
        began = time.monotonic()
        parts = ("s3://bucket/prefix", "127.0.0.1:1", "is it running", "MZSANE_S3_ENDPOINT")
        for attempt in (store.check, lambda: store.find(WORK.ref)):
            with refused(*parts):
                attempt()
        assert time.monotonic() - began < 30

    def test_endpoint_without_a_scheme(self, monkeypatch):
        point_to(monkeypatch, "127.0.0.1:9000", "s3://bucket/prefix")
        for attempt in (ArtifactStore.from_environment, lambda: open_storage("s3://bucket/zoo")):
            with pytest.raises(ConfigError, match=r"MZSANE_S3_ENDPOINT '127\.0\.0\.1:9000' must begin with http"):
                attempt()

    def test_the_endpoint_is_used_wherever_a_bucket_is_opened(self, s3):
        """By the store, by the storage of an export or a source, without a caller that names it."""
        work = Work("zoo", 1, {"opened": "directly"})
        ArtifactStore(s3.store.root).publish(work, {"a.bin": b"abc"}, {})
        assert read_all(s3.store.open(work.ref)) == {"a.bin": b"abc"}
        Storage(f"{s3.store.root}/exported", setting="the export's target").write("x", b"theirs")
        assert s3.get("exported/x") == b"theirs"

    def test_missing_bucket(self, monkeypatch, s3_endpoint):
        point_to(monkeypatch, s3_endpoint, "s3://no-such-bucket/prefix")
        store = ArtifactStore.from_environment()
        for attempt in (store.check, lambda: store.publish(WORK, FILES, {})):
            with refused("the bucket of s3://no-such-bucket/prefix does not exist", "MZSANE_ROOT"):
                attempt()

    def test_server_that_is_no_s3(self, monkeypatch):
        import http.server

        class Page(http.server.BaseHTTPRequestHandler):
            def do_PUT(self):
                self.send_error(404, "nothing here")

            def log_message(self, *args):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}", "s3://bucket/prefix")
            with refused("s3://bucket/prefix"):
                ArtifactStore.from_environment().check()
            server.shutdown()

    @pytest.mark.parametrize("root", ["nonsense://x/y", "abfs-missing://x"])
    def test_unknown_protocol(self, root):
        with refused("MZSANE_ROOT", root, kind=ConfigError):
            ArtifactStore(root)

    def test_root_that_is_a_file(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        store = ArtifactStore(str(tmp_path / "file"))
        assert store.find(WORK.ref) is None
        with refused(str(tmp_path / "file"), "is MZSANE_ROOT the folder you meant?"):
            store.check()
        with refused("is MZSANE_ROOT the folder you meant?"):
            store.publish(WORK, FILES, {})

    def test_root_that_cannot_be_made(self):
        with refused("/proc/mzsane", "MZSANE_ROOT"):
            ArtifactStore("/proc/mzsane").check()

    def test_root_that_cannot_be_written(self, tmp_path):
        folder = Path("/sys/kernel") if os.getuid() == 0 else tmp_path  # root may write to any other folder
        if folder == tmp_path:
            tmp_path.chmod(0o500)
        try:
            with refused("refused access", "the folder cannot be written: set MZSANE_ROOT to one that can"):
                ArtifactStore(str(folder / "mzsane")).check()
        finally:
            if folder == tmp_path:
                tmp_path.chmod(0o700)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"this user cannot mount a small disk: {mount.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


class TestFullDisk:
    def test_publishing_stops_clean_and_can_go_on(self, small_disk):
        place = Place(ArtifactStore(str(small_disk / "store")), folder=small_disk)
        files = {"small.bin": b"fits", "large.bin": bytes(400_000)}
        place.store.partial(WORK).write("chunk", b"kept")
        with refused("no space left in the store", str(small_disk), "MZSANE_ROOT"):
            place.store.publish(WORK, files, {})
        assert not place.store.exists(WORK.ref)
        assert not any(Path(name).name.startswith(".") for name in place.names())
        assert not any("large" in name for name in place.names())
        assert place.store.partial(WORK).read("chunk") == b"kept"
        subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
        assert read_all(place.store.publish(WORK, files, {})) == files

    def test_partial_keeps_its_old_bytes(self, small_disk):
        partial = ArtifactStore(str(small_disk / "store")).partial(WORK)
        partial.write("state", b"old")
        with refused("no space left in the store", "state"):
            partial.write("state", bytes(400_000))
        assert partial.read("state") == b"old"
        assert partial.names() == {"state"}

    def test_full_disk_is_noticed_before_the_work(self, small_disk):
        (small_disk / "fill").write_bytes(bytes(200_000))
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "more").write_bytes(bytes(200_000))
        with refused("no space left in the store"):
            ArtifactStore(str(small_disk / "store")).check()

    def test_full_cache_is_told_from_a_full_store(self, small_disk, s3):
        artifact = s3.store.publish(WORK, {"large.bin": bytes(400_000)}, {})
        cached = ArtifactStore(
            s3.store.root, cache=small_disk / "cache", options={"endpoint_url": s3.client.meta.endpoint_url}
        )
        with refused("no space left", str(small_disk / "cache")):
            cached.open(artifact.ref).path("large.bin")
        assert list((small_disk / "cache").iterdir()) == []


WRITER = """
    import os, random, signal, sys, time
    from mzsane.store.artifacts import ArtifactStore, Work

    root, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    random.seed(seed)
    store = ArtifactStore(root)

    def publish_for_ever(first):
        number = first
        while True:
            work = Work("zoo", 1, {"number": number})
            store.partial(work).write("chunk", os.urandom(50_000))
            files = {f"{name}.bin": f"{number}{name}".encode() * 20_000 for name in "abc"}
            store.publish(work, files, {"number": number})
            number += 1

    # The loop is killed from outside; a fork saves importing everything for each kill.
    for turn in range(kills):
        child = os.fork()
        if child == 0:
            publish_for_ever(1000 * (turn % 3))  # several turns meet the same works, finished or not
        time.sleep(random.uniform(0.005, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


def test_killed_writer_leaves_only_whole_artifacts(local):
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)  # the moments are random each time; pytest shows this line with a failure
    command = [sys.executable, "-c", textwrap.dedent(WRITER), local.store.root, "30", str(seed)]
    subprocess.run(command, check=True, timeout=120, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"})
    folders = {str(Path(name).parent) for name in local.names() if name.startswith("zoo/")}
    visible = {folder for folder in folders if f"{folder}/manifest.json" in local.names()}
    assert visible
    for folder in visible:
        kind, fingerprint = folder.split("/")
        artifact = local.store.open(ArtifactRef(kind=kind, fingerprint=fingerprint))
        number = artifact.manifest.counts["number"]
        assert artifact.ref == Work("zoo", 1, {"number": number}).ref
        assert read_all(artifact) == {f"{name}.bin": f"{number}{name}".encode() * 20_000 for name in "abc"}
    # What was cut off can be done again.
    for number in (0, 1000, 2000):
        local.store.publish(Work("zoo", 1, {"number": number}), FILES, {})


@pytest.mark.slow
class TestRealServer:
    """Against a real S3 server, such as the stack's: MZSANE_TEST_S3_ENDPOINT, _KEY, _SECRET, _BUCKET."""

    @pytest.fixture
    def settings(self):
        settings = {key: os.environ.get(f"MZSANE_TEST_S3_{key}") for key in ("ENDPOINT", "KEY", "SECRET", "BUCKET")}
        if not all(settings.values()):
            pytest.skip("set MZSANE_TEST_S3_ENDPOINT, _KEY, _SECRET and _BUCKET to test against a real S3 server")
        return settings

    @pytest.fixture
    def real(self, settings, monkeypatch, tmp_path):
        s3fs.S3FileSystem.clear_instance_cache()  # an instance keeps the credentials it was made with
        bucket, prefix = settings["BUCKET"], f"test-{uuid.uuid4().hex}"
        keys = settings["KEY"], settings["SECRET"]
        point_to(monkeypatch, settings["ENDPOINT"], f"s3://{bucket}/{prefix}", *keys)
        monkeypatch.setenv("MZSANE_CACHE", str(tmp_path / "cache"))
        yield ArtifactStore.from_environment()
        s3fs.S3FileSystem.clear_instance_cache()
        client = connect(settings["ENDPOINT"], *keys)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        for key in [item["Key"] for page in pages for item in page.get("Contents", [])]:
            client.delete_object(Bucket=bucket, Key=key)

    def test_publish_open_and_damage(self, real, tmp_path):
        real.check()
        real.partial(WORK).write("chunk", b"x")
        published = real.publish(WORK, FILES, {})
        assert read_all(real.open(WORK.ref)) == FILES
        assert real.partial(WORK).names() == set()
        assert real.publish(WORK, {"index.parquet": b"later"}, {}).manifest == published.manifest
        assert len(real.files.list_names(str(WORK.ref))) == len(FILES) + 1
        work = Work("zoo", 1, {"damaged": 1})
        damaged = real.publish(work, FILES, {})
        real.files.write(stored_name(damaged, "index.parquet"), b"bad")
        for path in (tmp_path / "cache").iterdir():
            path.unlink()
        with refused("sha256", kind=CorruptArtifactError):
            damaged.path("index.parquet")

    def test_race_gives_one_artifact(self, real):
        for turn in range(5):
            work, start = Work("zoo", 1, {"race": turn}), threading.Barrier(8)

            def publish(number, work=work, start=start):
                start.wait()
                return real.publish(work, {"a.bin": bytes([number]) * 1000}, {"writer": number})

            with ThreadPoolExecutor(8) as pool:
                results = list(pool.map(publish, range(8)))
            winner = results[0].manifest
            assert all(result.manifest == winner for result in results)
            assert read_all(results[0])["a.bin"] == bytes([winner.counts["writer"]]) * 1000
            assert real.files.list_names(str(work.ref)) == {"manifest.json", winner.files["a.bin"].path}

    def test_missing_bucket(self, real, monkeypatch):
        monkeypatch.setenv("MZSANE_ROOT", "s3://mzsane-no-such-bucket/prefix")
        with refused("does not exist", "MZSANE_ROOT"):
            ArtifactStore.from_environment().check()

    @pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
    def test_wrong_credentials_are_told_without_showing_them(self, real, settings, monkeypatch, wrong):
        monkeypatch.setenv(wrong, "hunter2hunter2")
        s3fs.S3FileSystem.clear_instance_cache()
        store = ArtifactStore.from_environment()
        for attempt in (store.check, lambda: store.find(WORK.ref), lambda: store.publish(WORK, FILES, {})):
            with pytest.raises(StoreError) as caught:
                attempt()
            assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)
            assert "hunter2" not in str(caught.value)
            assert settings["SECRET"] not in str(caught.value)
            assert "\n" not in str(caught.value)
