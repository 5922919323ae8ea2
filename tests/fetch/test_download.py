"""Downloads over a real HTTP server into the store: killed, resumed, wrong, and only what is needed."""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from mzsane.config import validate_config
from mzsane.config.reading import DownloadConfig
from mzsane.errors import ConfigError, CorruptArtifactError, StoreError
from mzsane.fetch import http as remote
from mzsane.fetch.download import archive_paths, download, open_archive, plan_download
from mzsane.store.artifacts import ArtifactStore
from tests.fetch.http_server import serve

REPOSITORY = Path(__file__).resolve().parents[2]
PIECE = 1 << 17
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
EPOCHS = range(1, 11)


class Log:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.told = []

    def metrics(self, values, step) -> None:
        pass

    def progress(self, done, total, note="") -> None:
        self.told.append((done, total, note))


def make_members() -> dict[str, bytes]:
    generator = random.Random(0)
    members = {}
    for model in range(8):
        home = f"zoo/model_{model}"
        members[f"{home}/params.json"] = b'{"seed": 1}'
        members[f"{home}/result.json"] = b'{"training_iteration": 0}\n' * len(EPOCHS)
        for epoch in EPOCHS:
            members[f"{home}/checkpoint_{epoch:06d}/checkpoints"] = generator.randbytes(30_000)
    return members


MEMBERS = make_members()
WANTED = {name: data for name, data in MEMBERS.items() if name.endswith((".json", "_000004/checkpoints"))}
TARGET = io.BytesIO()
with zipfile.ZipFile(TARGET, "w") as packed:
    for name, data in MEMBERS.items():
        packed.writestr(name, data)
ZIP = TARGET.getvalue()
TAR = random.Random(2).randbytes(1_000_001)
SLOW = 0.03  # seconds a block: a client that goes away is noticed before much more is sent


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(remote, "_BACKOFF", 0.01)
    with serve() as server:
        server.files["/files/zoo.zip"] = ZIP
        server.files["/files/zoo.tar"] = TAR
        yield server


def make_config(server, file="zoo.zip", **settings) -> DownloadConfig:
    return DownloadConfig(name="zoo", source=f"{server.url}/files/{file}", piece_bytes=PIECE, **settings)


def read_members(artifact, folder) -> dict[str, bytes]:
    found = {}
    for path in archive_paths(artifact, folder):
        with zipfile.ZipFile(path) as packed:
            found |= {name: packed.read(name) for name in packed.namelist()}
    return found


def read_parts(artifact, folder) -> bytes:
    (path,) = archive_paths(artifact, folder)
    return path.read_bytes()


def test_chosen_epochs_come_with_little_else(server, store, tmp_path):
    log = Log()
    artifact = download(make_config(server, epochs=(4,)), store, log)
    assert read_members(artifact, tmp_path) == WANTED
    assert server.sent <= 1.1 * sum(map(len, WANTED.values()))
    assert server.most_busy <= 2
    assert artifact.manifest.counts["members"] == len(WANTED) == 24
    assert log.told[0][:2] == (0, 0)
    assert log.told[0][2].startswith("MB, 24 members in 2 pieces, 16 requests")
    assert log.told[-1] == (0, 0, "MB, fetched")


def test_a_whole_zip_is_repacked_into_pieces(server, store, tmp_path):
    log = Log()
    artifact = download(make_config(server), store, log)
    assert read_members(artifact, tmp_path) == MEMBERS
    assert server.sent <= len(ZIP) + 4
    assert all(entry.bytes <= PIECE for entry in artifact.manifest.files.values())
    assert store.files.walk() == sorted(
        [f"{artifact.ref}/manifest.json", *(f"{artifact.ref}/{e.path}" for e in artifact.manifest.files.values())]
    )
    assert [told[:2] for told in log.told][:: len(log.told) - 1] == [(0, 2), (2, 2)]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("hide_size", [True, False])
def test_any_other_file_is_stored_in_parts(server, store, tmp_path, ranges, hide_size):
    server.faults.ranges = ranges
    server.faults.hide_size = hide_size
    server.faults.seconds_a_block = 0.0 if ranges else SLOW
    config = make_config(server, "zoo.tar", md5=hashlib.md5(TAR).hexdigest(), sha256=hashlib.sha256(TAR).hexdigest())
    artifact = download(config, store, Log())
    assert len(artifact.manifest.files) == 8
    assert read_parts(artifact, tmp_path) == TAR
    assert archive_paths(artifact, tmp_path)[0].name == "zoo.tar"
    assert server.sent <= len(TAR) + 4 + (1 << 16)


def test_a_zip_whose_checksum_is_given_is_stored_as_it_is(server, store, tmp_path):
    artifact = download(make_config(server, sha256=hashlib.sha256(ZIP).hexdigest().upper()), store)
    assert read_parts(artifact, tmp_path) == ZIP


def test_a_zip_of_pytorch_is_stored_as_it_is(server, store, tmp_path):
    server.files["/files/model.pt"] = ZIP
    assert read_parts(download(make_config(server, "model.pt"), store), tmp_path) == ZIP


def test_downloads_are_sources(server, store, tmp_path):
    whole = download(make_config(server, sha256=hashlib.sha256(ZIP).hexdigest()), store)
    some = download(make_config(server, epochs=(4,)), store)
    server.files["/files/model.pt"] = ZIP
    single = download(make_config(server, "model.pt"), store)
    for artifact, members in ((whole, MEMBERS), (some, WANTED), (single, {"model.pt": ZIP})):
        for folder in (None, tmp_path):
            with open_archive(artifact, 1 << 30, folder) as source:
                assert source.names() == sorted(members)
                assert all(source.read(name) == data for name, data in members.items())


def test_it_is_done_once(server, store):
    first = download(make_config(server, epochs=(4,)), store)
    server.forget()
    again = download(make_config(server, epochs=(4,)).model_copy(update={"name": "other"}), store)
    assert again.ref == first.ref
    assert not server.requests


@pytest.mark.parametrize(
    ("file", "settings"),
    [("zoo.zip", {}), ("zoo.zip", {"epochs": (4, 5, 6)}), ("zoo.tar", {}), ("zoo.tar", {"md5": "0" * 32})],
)
def test_killed_at_any_point_it_goes_on_at_the_piece(server, store, tmp_path, file, settings):
    if "md5" in settings:
        settings = {"md5": hashlib.md5(TAR).hexdigest()}
    config = make_config(server, file, **settings)
    server.faults.seconds_a_block = 0.01
    code = (
        "import sys; from mzsane.store.artifacts import ArtifactStore\n"
        "from mzsane.config.reading import DownloadConfig\n"
        "from mzsane.fetch.download import download\n"
        "download(DownloadConfig.model_validate_json(sys.argv[1]), ArtifactStore(sys.argv[2]))"
    )
    notes = Path(store.root) / "partial" / str(plan_download(config).ref)
    for pieces, how in ((1, signal.SIGINT), (3, signal.SIGKILL)):
        command = [sys.executable, "-c", code, config.model_dump_json(), store.root]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        while len([*notes.glob("members-*"), *notes.glob("part-*")]) < pieces:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(how)
        process.wait(timeout=10)
    there = [json.loads(path.read_bytes()[:-32])["entry"]["bytes"] for path in notes.glob("[mp]*.json")]
    assert sum(there) > 0
    while server.busy:  # until it notices that nobody listens
        time.sleep(0.005)
    server.forget()
    artifact = download(config, store)
    whole = sum(entry.bytes for entry in artifact.manifest.files.values())
    # The repacked zips have directories of their own, which are not moved.
    assert server.sent <= 4 + whole - sum(there)
    if file == "zoo.tar":
        assert read_parts(artifact, tmp_path) == TAR
        assert server.sent == 4 + whole - sum(there)
    else:
        expected = {n: d for n, d in MEMBERS.items() if not settings or n[-18:-12] in ("000004", "000005", "000006")}
        if settings:
            expected |= {n: d for n, d in MEMBERS.items() if n.endswith(".json")}
        assert read_members(artifact, tmp_path) == expected
    assert not list((Path(store.root) / "partial").rglob("*.json"))


def test_without_ranges_what_is_stored_is_not_stored_again(server, store, tmp_path):
    server.faults.ranges = False
    config = make_config(server, "zoo.tar")
    server.faults.cut_after = 5 * PIECE + 100
    with pytest.raises(StoreError, match="7 attempts failed"):
        download(config, store)
    folder = Path(store.address(plan_download(config).ref))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 5
    server.forget()
    server.faults.ranges = False
    assert read_parts(download(config, store), tmp_path) == TAR
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}.items()


@pytest.mark.parametrize("file", ["zoo.zip", "zoo.tar"])
def test_a_new_version_on_the_server_starts_anew(server, store, tmp_path, file):
    config = make_config(server, file)
    server.faults.seconds_a_block = 0.01

    class Change(Log):
        def progress(self, done, total, note="") -> None:
            super().progress(done, total, note)
            server.faults.etag = '"v2"'

    with pytest.raises(StoreError, match="changed on the server"):
        download(config, store, Change())
    store.upload(plan_download(config), "part-00000.bin", b"of the old version")
    server.faults.seconds_a_block = 0
    artifact = download(config, store)
    assert artifact.manifest.counts["version"] == '"v2"'
    found = read_parts(artifact, tmp_path) if file == "zoo.tar" else read_members(artifact, tmp_path)
    assert found == (TAR if file == "zoo.tar" else MEMBERS)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_wrong_checksum_is_an_error_and_nothing_is_kept(server, store, ranges):
    server.faults.ranges = ranges
    server.faults.flip_at = 700_000
    config = make_config(server, "zoo.tar", sha256=hashlib.sha256(TAR).hexdigest())
    with pytest.raises(StoreError, match=r"not the file that was meant: its sha256 is .* removed"):
        download(config, store)
    assert store.files.walk() == []
    server.faults.flip_at = None
    assert download(config, store).manifest.counts["bytes"] == len(TAR)


def test_damaged_notes_and_lost_pieces_are_fetched_again(server, store, tmp_path):
    config = make_config(server, "zoo.tar")
    work = plan_download(config)
    notes = store.partial(work)
    real, count = type(notes).write, 0

    def write(self, name, data):
        nonlocal count
        count += 1
        if count > 5:
            raise StoreError("full")
        real(self, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(notes), "write", write)
        with pytest.raises(StoreError, match="full"):
            download(config, store)
    partial, folder = Path(store.root) / "partial" / str(work.ref), Path(store.address(work.ref))
    noted = sorted(partial.glob("part-*"))
    noted[0].write_bytes(b"x" * 40)
    next(folder.glob(f"{noted[1].name[:10]}*")).unlink()
    assert read_parts(download(config, store), tmp_path) == TAR


def test_two_at_once_share_an_artifact(server, store):
    config = make_config(server, "zoo.tar")

    class Other(Log):
        def progress(self, done, total, note="") -> None:
            if not self.told:
                self.told.append(note)
                download(config, store)

    assert download(config, store, Other()).manifest.counts["bytes"] == len(TAR)
    assert not list((Path(store.root) / "partial").rglob("*.json"))


def test_a_remote_store_is_filled_and_read(server, tmp_path, s3_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    import s3fs

    s3fs.S3FileSystem(endpoint_url=s3_endpoint, key="test", secret="test").mkdir("downloads")
    store = ArtifactStore("s3://downloads/store", tmp_path / "cache", {"endpoint_url": s3_endpoint})
    artifact = download(make_config(server, epochs=(4,)), store)
    assert read_members(artifact, tmp_path) == WANTED
    config = make_config(server, "zoo.tar", md5=hashlib.md5(TAR).hexdigest())
    assert read_parts(download(config, store), tmp_path) == TAR


def test_a_joined_file_is_made_once_and_checked(server, store, tmp_path):
    artifact = download(make_config(server, "zoo.tar"), store)
    (path,) = archive_paths(artifact, tmp_path / "joined")
    inode = path.stat().st_ino
    assert archive_paths(artifact, tmp_path / "joined")[0].stat().st_ino == inode
    artifact.path("part-00003.bin").write_bytes(b"changed")
    with pytest.raises(CorruptArtifactError):
        archive_paths(artifact, tmp_path / "other")
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("file", "settings", "text"),
    [
        ("none.zip", {}, "there is no http://.*/files/none.zip .*check the address"),
        ("zoo.zip", {"epochs": (3, 60)}, "has no checkpoints of epoch 60; it has those of 1 to 10"),
        ("zoo.tar", {"epochs": (3,)}, r"is not a zip, so that only the whole file \(1 MB\) can be fetched"),
        ("empty.zip", {}, "is empty"),
        ("slip.zip", {}, "a name that leads out of its folder"),
    ],
)
def test_what_cannot_be_fetched_is_explained(server, store, file, settings, text):
    server.files["/files/empty.zip"] = b""
    server.files["/files/slip.zip"] = ZIP.replace(b"zoo/model_3/result.json", b"../../../../etc/passwd2")
    with pytest.raises(ConfigError, match=text):
        download(make_config(server, file, **settings), store)
    assert not [name for name in store.files.walk() if not name.startswith("partial/")]


def test_epochs_of_a_zip_need_ranges(server, store):
    server.faults.ranges = False
    server.faults.seconds_a_block = SLOW
    with pytest.raises(
        ConfigError, match=r"sends no byte ranges, .* whole file \(2 MB\).*leave out epochs and members"
    ):
        download(make_config(server, epochs=(4,)), store)
    assert server.sent < 100_000


def test_the_catalogue_and_the_address_name_the_same_work():
    by_name = DownloadConfig(name="a", source="cifar10-cnn-sample", epochs=(21, 22))
    url = "https://zenodo.org/records/13144018/files/cifar10_cnn_sample_ep21-25.zip"
    by_address = DownloadConfig(name="b", source=url, epochs=(22, 21, 21))
    assert plan_download(by_name).ref == plan_download(by_address).ref


def test_a_token_in_an_address_is_used_but_not_kept(server, store):
    config = make_config(server, "zoo.zip?token=secret", epochs=(4,))
    artifact = download(config, store)
    assert server.requests[0][0] == "/files/zoo.zip?token=secret"
    assert "secret" not in artifact.manifest.model_dump_json()
    assert plan_download(config).ref != plan_download(make_config(server, epochs=(4,))).ref


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"source": "minst"}, "'minst' is neither an http"),
        ({"source": "mnist"}, "knows the record of 'mnist' but none of its files"),
        ({"source": "ftp://host/zoo.zip"}, "source: only http and https addresses"),
        ({"source": "https://falk:tiger@host/zoo.zip"}, r"put them in ~/\.netrc"),
        ({"epochs": ()}, "epochs: .*at least 1 item"),
        ({"epochs": (-1,)}, r"epochs\.0: .*greater than or equal to 0"),
        ({"sha256": "abc"}, "sha256: .*pattern"),
        ({"epochs": (1,), "md5": "0" * 32}, "cannot be checked when only epochs or members are fetched"),
        ({"members": ("*.json",), "sha256": "0" * 64}, "cannot be checked when only epochs or members"),
        ({"piece_bytes": 10}, "piece_bytes: .*greater than or equal to 65536"),
        ({"mirror": 1}, "mirror: unknown key"),
    ],
)
def test_wrong_settings_are_explained(settings, text):
    with pytest.raises(ConfigError, match=text) as error:
        plan_download(
            validate_config(DownloadConfig, {"name": "zoo", "source": "http://host/z.zip"} | settings, "a form")
        )
    assert "tiger" not in str(error.value)
