"""Remote files over a real HTTP server: what is resumed, what is waited for, and what every failure says."""

import base64
import random
import socket
import threading
import time

import pytest

from mzsane.errors import ConfigError, StoreError
from mzsane.fetch import http as remote
from mzsane.fetch.http import RemoteFile
from tests.fetch.http_server import serve

DATA = random.Random(0).randbytes(1_000_000)
URL = "/zoo/file.bin"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(remote, "_BACKOFF", 0.01)
    with serve() as server:
        server.files[URL] = DATA
        yield server


def read(file: RemoteFile, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join(file.stream(start, stop))


def test_a_file_is_asked_for_its_size_version_and_start(server):
    file = RemoteFile(server.url + URL)
    assert (file.size, file.ranges, file.version, file.start) == (len(DATA), True, '"v1"', DATA[:4])
    assert server.sent == 4


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 123_456), (999_999, 1_000_000), (0, None), (7, 7)])
def test_any_range_is_read(server, start, stop):
    file = RemoteFile(server.url + URL)
    assert read(file, start, stop) == DATA[start:stop]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"', None])
def test_broken_connections_are_taken_up_where_they_broke(server, ranges, etag):
    server.faults.etag = etag
    server.faults.ranges = ranges
    file = RemoteFile(server.url + URL)
    server.faults.cut_after, server.faults.cut_answers = 300_000, 3
    moved = file.moved
    assert read(file, 10, 950_000) == DATA[10:950_000]
    if ranges:
        assert file.moved - moved == 949_990  # no byte twice
        assert len(server.requests) == 5


def test_a_server_that_always_breaks_ends_the_attempts(server):
    file = RemoteFile(server.url + URL)
    server.faults.cut_after = 0
    with pytest.raises(StoreError, match=r"7 attempts failed, the last because the connection broke; .* run again"):
        read(file)


def test_a_server_without_ranges_that_breaks_at_the_same_place_ends_the_attempts(server):
    server.faults.ranges = False
    file = RemoteFile(server.url + URL)
    server.faults.cut_after = 500_000
    with pytest.raises(StoreError, match="7 attempts failed"):
        read(file)


def test_retry_after_is_honoured_and_said(server):
    said = []
    file = RemoteFile(server.url + URL, said.append)
    server.faults.statuses = [(429, {"Retry-After": "1"}), (503, {"Retry-After": "0"}), (503, {}), (502, {})]
    began = time.monotonic()
    assert read(file, 0, 100) == DATA[:100]
    assert 1 <= time.monotonic() - began < 3
    assert said[0] == "waiting 1 s for 127.0.0.1: the server is busy (it answers 429)"
    assert len(said) == 4


def test_both_threads_wait_when_one_is_told_to(server):
    file = RemoteFile(server.url + URL)
    server.faults.statuses = [(429, {"Retry-After": "1"})]
    first = threading.Thread(target=read, args=(file, 0, 100))
    first.start()
    time.sleep(0.3)
    began = time.monotonic()
    read(file, 100, 200)
    assert time.monotonic() - began > 0.4
    first.join()


def test_a_wait_that_is_too_long_is_left_to_the_user(server):
    file = RemoteFile(server.url + URL)
    server.faults.statuses = [(429, {"Retry-After": "7200"})]
    with pytest.raises(StoreError, match=r"127\.0\.0\.1 asks to wait 120 minutes .* run again after that"):
        read(file)


def test_an_unreadable_retry_after_is_passed_over(server):
    file = RemoteFile(server.url + URL)
    server.faults.statuses = [(429, {"Retry-After": "soon"})]
    assert read(file, 0, 10) == DATA[:10]


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (404, ConfigError, "there is no http://127.* check the address"),
        (410, ConfigError, "there is no http://127.* check the address"),
        (401, ConfigError, r"~/\.netrc"),
        (403, ConfigError, r"~/\.netrc"),
        (500, StoreError, "7 attempts failed, the last because the server failed"),
        (400, StoreError, "answers 400"),
    ],
)
def test_statuses_are_explained(server, status, kind, text):
    server.faults.statuses = [(status, {})] * 10
    with pytest.raises(kind, match=text):
        RemoteFile(server.url + URL)


def test_an_unreachable_server_is_explained(monkeypatch):
    monkeypatch.setattr(remote, "_BACKOFF", 0.01)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(StoreError, match=r"127\.0\.0\.1 cannot be reached.*is there a network.*https_proxy"):
            RemoteFile(f"http://127.0.0.1:{taken.getsockname()[1]}/file.zip")


def test_a_host_that_does_not_exist_is_explained(monkeypatch):
    monkeypatch.setattr(remote, "_BACKOFF", 0.01)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StoreError, match=r"zoo\.invalid cannot be reached \(NameResolutionError\)"):
        RemoteFile("http://zoo.invalid/file.zip")


def test_a_server_that_goes_away_is_asked_again_some_times(server):
    file = RemoteFile(server.url + URL)
    server.faults.statuses = [(503, {"Connection": "close"})]
    server.shutdown()
    server.server_close()
    with pytest.raises(StoreError, match="cannot be reached"):
        read(file)
    assert file.requests == 1 + 7


def test_an_insecure_server_is_explained(server):
    with pytest.raises(StoreError, match=r"no secure connection to 127\.0\.0\.1.*SSL_CERT_FILE"):
        RemoteFile(server.url.replace("http:", "https:") + URL)


def test_a_web_page_is_not_a_file(server):
    server.faults.content_type = "text/html; charset=utf-8"
    with pytest.raises(ConfigError, match="is a web page and not a file"):
        RemoteFile(server.url + URL)


def test_redirects_are_followed_but_not_without_end(server):
    server.faults.statuses = [(302, {"Location": URL})]
    assert RemoteFile(server.url + "/old").size == len(DATA)
    server.faults.redirect = "/round"
    with pytest.raises(StoreError, match="redirects without end"):
        RemoteFile(server.url + URL)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changes_is_noticed(server, ranges):
    server.faults.ranges = ranges
    file = RemoteFile(server.url + URL)
    server.faults.etag = '"v2"'
    with pytest.raises(StoreError, match=r"changed on the server .* run again, and the download starts anew"):
        read(file, 10, 20)


def test_a_file_that_shrinks_is_noticed_without_a_version(server):
    server.faults.etag = None
    file = RemoteFile(server.url + URL)
    server.files[URL] = DATA[:500_000]
    for start in (10, 700_000):
        with pytest.raises(StoreError, match="changed on the server"):
            read(file, start, 800_000)


def test_a_server_that_does_not_say_the_size(server):
    server.faults.ranges = False
    server.faults.hide_size = True
    file = RemoteFile(server.url + URL)
    assert (file.size, file.ranges) == (None, False)
    assert read(file) == DATA


def test_an_empty_file(server):
    server.files[URL] = b""
    file = RemoteFile(server.url + URL)
    assert (file.size, file.start) == (0, b"")
    assert read(file) == b""


def test_at_most_two_connections_whatever_asks(server):
    server.faults.seconds_a_block = 0.002
    files = [RemoteFile(server.url + URL) for _ in range(2)]
    threads = [threading.Thread(target=read, args=(files[i % 2], 1000 * i, 200_000)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most_busy == 2


def test_streams_that_are_given_up_give_their_connections_back(server):
    file = RemoteFile(server.url + URL)
    for _ in range(5):
        stream = file.stream()
        next(stream)
        stream.close()
    assert read(file, 0, 10) == DATA[:10]


def test_a_stop_ends_streams_and_waits(server):
    file = RemoteFile(server.url + URL)
    server.faults.statuses = [(429, {"Retry-After": "60"})]
    threading.Timer(0.2, file.stop).start()
    began = time.monotonic()
    with pytest.raises(StoreError, match="was stopped; run it again to continue"):
        read(file)
    assert time.monotonic() - began < 5


def test_users_come_from_netrc_and_are_never_said(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login falk password tiger\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.faults.user = base64.b64encode(b"falk:tiger").decode()
    assert RemoteFile(server.url + URL).size == len(DATA)
    server.faults.user = "another"
    with pytest.raises(ConfigError, match="answers 401") as error:
        RemoteFile(server.url + URL + "?token=secret")
    assert not any(word in str(error.value) for word in ("tiger", "falk", "secret", "token"))


def test_a_broken_netrc_is_explained_without_its_words(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login falk\ntiger\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ConfigError, match="netrc cannot be read near line") as error:
        RemoteFile(server.url + URL)
    assert "tiger" not in str(error.value)


def test_a_proxy_of_the_environment_is_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    server.files["http://zoo.invalid/file.bin"] = DATA
    assert RemoteFile("http://zoo.invalid/file.bin").size == len(DATA)
