"""File systems that are away for a moment, need keys, or cannot be opened."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import boto3
import pytest
import s3fs

from mzsane.errors import ConfigError, StoreError
from mzsane.store.artifacts import ArtifactStore, Work
from mzsane.store.file_systems import is_away
from mzsane.store.storage import Storage

AWAY_SECONDS = 5.0


class Relay:
    """A port in front of a server, which can be closed with all that goes through it, and opened again."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self.server = (host, int(port.strip("/")))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.listener: socket.socket | None = None
        self.pairs: list[socket.socket] = []
        self.lose: Callable[[bytes], bool] = lambda request: False

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=50, reuse_port=False)
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def close(self) -> None:
        if self.listener is not None:
            with suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        for side in self.pairs:
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()
        self.pairs.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self.server)
                self.pairs += [client, server]
                answers = threading.Event()
                answers.set()
                threading.Thread(target=self._pump, args=(client, server, answers, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, answers, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, answers: threading.Event, requests: bool) -> None:
        with suppress(OSError):
            while block := source.recv(1 << 16):
                if requests and self.lose(block):
                    answers.clear()
                if not requests and not answers.is_set():
                    break  # the server has done it, and nobody hears of it
                target.sendall(block)
        for side in (source, target):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="away")
    relay = Relay(s3_endpoint)
    monkeypatch.setenv("MZSANE_S3_ENDPOINT", relay.endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    yield relay
    relay.close()
    s3fs.S3FileSystem.clear_instance_cache()


def open_storage(root: str) -> Storage:
    return Storage(root)


def test_a_run_waits_for_a_server_that_is_away(relay: Relay, tmp_path) -> None:
    relay.open()
    storage = open_storage("s3://away/moments")
    storage.write("a/old", b"old")
    relay.close()
    threading.Timer(AWAY_SECONDS, relay.open).start()
    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        results = [
            threads.submit(action)
            for action in (
                lambda: storage.read("a/old"),
                lambda: storage.write("a/new", b"new"),
                lambda: storage.create("a/first", b"first"),
                lambda: storage.exists("a/old"),
                lambda: storage.size("a/old"),
                lambda: storage.list_names("a") >= {"old"},
                lambda: "a/old" in storage.walk(),
                lambda: storage.download("a/old", tmp_path / "copy"),
            )
        ]
        assert [result.result() for result in results] == [b"old", None, True, True, 3, True, True, None]
    assert time.monotonic() - began > AWAY_SECONDS - 1
    assert (storage.read("a/new"), (tmp_path / "copy").read_bytes()) == (b"new", b"old")


def test_a_store_whose_server_starts_late(relay: Relay) -> None:
    threading.Timer(AWAY_SECONDS, relay.open).start()
    store = ArtifactStore("s3://away/late")
    store.check()
    work = Work("zoo", 1, {})
    assert store.find(work.ref) is None
    assert store.publish(work, {"a.bin": b"a"}, {}).read("a.bin") == b"a"


def test_what_was_created_with_a_lost_answer_is_our_own(relay: Relay) -> None:
    relay.open()
    storage = open_storage("s3://away/lost")
    storage.write("other", b"x")
    lost = []

    def lose(request: bytes) -> bool:
        if b"our claim" in request and not lost:
            lost.append(request)
            return True
        return False

    relay.lose = lose
    assert storage.create("claim", b"our claim")
    assert lost
    assert not storage.create("claim", b"theirs")


def test_missing_keys_are_named(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("MZSANE_S3_ENDPOINT", s3_endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    storage = open_storage("s3://away/keys")
    for action in (lambda: storage.write("a", b"a"), lambda: storage.read("a"), lambda: storage.create("a", b"")):
        with pytest.raises(StoreError, match=r"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and MZSANE_S3_ENDPOINT"):
            action()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    "root", ["s3://key:CANARY@bucket/x", "nope://x", "https://h/zoo?hidden-sha256=" + 32 * "0", "/a\x00b", "zip://"]
)
def test_what_cannot_be_opened_is_one_line(root: str) -> None:
    with pytest.raises((ConfigError, StoreError), match="MZSANE_ROOT") as caught:
        Storage(root)
    assert "CANARY" not in str(caught.value)


def test_an_endpoint_with_a_password_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MZSANE_S3_ENDPOINT", "http://key:CANARY@127.0.0.1:9")
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY") as caught:
        open_storage("s3://bucket")
    assert "CANARY" not in str(caught.value)


def test_a_host_that_does_not_exist_is_not_waited_for() -> None:
    wrong = OSError("cannot connect")
    wrong.__cause__ = socket.gaierror(socket.EAI_NONAME, "no such host")
    assert not is_away(wrong)
    assert is_away(ConnectionRefusedError())
    assert not is_away(FileNotFoundError())
    assert not is_away(PermissionError())
