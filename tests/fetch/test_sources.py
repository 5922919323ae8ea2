"""Folders, archives and hubs give the same files; what is not safe is refused by name, and nothing else happens."""

import gzip
import io
import os
import pickle
import socket
import tarfile
import threading
import tracemalloc
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote
from urllib.request import urlopen

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from mzsane.errors import ConfigError, StoreError
from mzsane.fetch.archives import TarSource, ZipSource
from mzsane.fetch.sources import FolderSource, open_source

LIMIT = 10_000_000
FILES = {"a/one.pt": b"first", "b.pt": b"second", "z/y/x.json": b"{}"}


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        path = tmp_path / "zoo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "zoo"


def make_zip(path, files, packing=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "kind", ["folder", "zip", "stored", "tar", "tar.gz", "tgz", "memory", "memory-zip", "memory-tgz"]
)
def test_all_sources_give_the_same_files(kind, folder, tmp_path):
    address = str(folder)
    memory = fsspec.filesystem("memory")
    if kind in ("zip", "stored"):
        address = str(make_zip(tmp_path / "z.zip", FILES, zipfile.ZIP_STORED if kind == "stored" else 8))
    elif kind in ("tar", "tar.gz", "tgz"):
        address = str(make_tar(tmp_path / f"z.{kind}", FILES, "w" if kind == "tar" else "w:gz"))
    elif kind == "memory":
        memory.put(address, "/sources", recursive=True)
        address = "memory://sources/zoo" if memory.exists("/sources/zoo") else "memory://sources"
    elif kind == "memory-zip":
        memory.put_file(str(make_zip(tmp_path / "z.zip", FILES)), "/archives/z.zip")
        address = "memory://archives/z.zip"
    elif kind == "memory-tgz":
        memory.put_file(str(make_tar(tmp_path / "z.tgz", FILES, "w:gz")), "/archives/z.tgz")
        address = "memory://archives/z.tgz"
    with open_source(address, LIMIT) as source:
        travelled = pickle.loads(pickle.dumps(source))
        assert travelled.names() == sorted(FILES)
        assert {name: travelled.read(name) for name in travelled.names()} == FILES
        assert not travelled.refused()
        with pytest.raises(ConfigError):
            travelled.read("nothing.pt")


def test_several_zips_are_one_source(tmp_path):
    first = make_zip(tmp_path / "members-00000.zip", {"a.pt": b"1"})
    second = make_zip(tmp_path / "members-00001.zip", {"b.pt": b"2"})
    source = ZipSource([first, second], LIMIT)
    assert source.names() == ["a.pt", "b.pt"]
    assert (source.read("a.pt"), source.read("b.pt")) == (b"1", b"2")


def test_a_changed_archive_is_read_anew(tmp_path):
    path = make_zip(tmp_path / "z.zip", {"a.pt": b"1"})
    assert ZipSource([path], LIMIT).read("a.pt") == b"1"
    make_zip(path, {"a.pt": b"other"})
    assert ZipSource([path], LIMIT).read("a.pt") == b"other"


HOSTILE = ["../out.pt", "/etc/out.pt", "a/../../out.pt", "C:/out.pt", "..\\out.pt", "a\x01.pt"]


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_escape_are_refused(make, tmp_path):
    path = make(tmp_path / "archive", {**dict.fromkeys(HOSTILE, b"x"), "good.pt": b"fine"})
    source = ZipSource([path], LIMIT) if make is make_zip else TarSource(path, LIMIT)
    assert source.names() == ["good.pt"]
    assert source.read("good.pt") == b"fine"
    assert len(source.refused()) == len(HOSTILE)
    assert all(reason.startswith("refused: ") for reason in source.refused().values())
    for name in source.refused():
        with pytest.raises(ConfigError, match="refused"):
            source.read(name)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["archive"]


def test_links_and_devices_are_refused(tmp_path):
    with tarfile.open(tmp_path / "z.tar", "w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "soft"), (tarfile.LNKTYPE, "hard"), (tarfile.CHRTYPE, "device")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert set(TarSource(tmp_path / "z.tar", LIMIT).refused()) == {"soft", "hard", "device"}
    link = zipfile.ZipInfo("soft")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert set(ZipSource([tmp_path / "z.zip"], LIMIT).refused()) == {"soft"}


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(make, tmp_path):
    path = make(tmp_path / "archive", {"a.pt": b"1"})
    if make is make_zip:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("a.pt", b"2")
    else:
        make_tar(path, {"a.pt": b"2"}, "a")
    source = ZipSource([path], LIMIT) if make is make_zip else TarSource(path, LIMIT)
    assert (source.names(), list(source.refused())) == ([], ["a.pt"])


def test_zip_bombs_are_refused(tmp_path):
    path = make_zip(tmp_path / "z.zip", {"big.pt": bytes(LIMIT + 1), "dense.pt": bytes(LIMIT // 2), "good.pt": b"1"})
    source = ZipSource([path], LIMIT)
    assert source.names() == ["good.pt"]
    assert "too large" in source.refused()["big.pt"]
    assert "bomb" in source.refused()["dense.pt"]


def test_a_bomb_that_lies_about_its_size_is_not_unpacked(tmp_path):
    path = make_zip(tmp_path / "z.zip", {"liar.pt": bytes(8_000_000)})
    data = bytearray(path.read_bytes())
    for at in (data.find(b"PK\x01\x02") + 24, 22):  # the size in the directory and in the member's own header
        data[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    source = ZipSource([path], LIMIT)
    tracemalloc.start()
    with pytest.raises(ConfigError, match="checksum"):
        source.read("liar.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_gzip_bombs_are_refused(tmp_path):
    with gzip.open(tmp_path / "z.tar.gz", "wb") as file:
        file.write(bytes(30_000_000))
    with pytest.raises(ConfigError, match="refused"), open_source(str(tmp_path / "z.tar.gz"), LIMIT):
        pass


@pytest.mark.parametrize("name", ["z.zip", "z.tar", "z.tar.gz"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind" * 100])
def test_what_is_no_archive_is_said(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused = pytest.raises(ConfigError, match=r"archive .* (is no|cannot be unpacked)")
    with refused, open_source(str(tmp_path / name), LIMIT):
        pass


@pytest.mark.parametrize("name", ["z.zip", "z.tar", "z.tar.gz"])
def test_a_missing_archive_is_said(name, tmp_path):
    for address in (str(tmp_path / name), f"memory://nowhere/{name}"):
        with pytest.raises(ConfigError, match="there is no archive"), open_source(address, LIMIT):
            pass


def test_a_truncated_archive_is_said(tmp_path):
    for path in (make_zip(tmp_path / "z.zip", FILES), make_tar(tmp_path / "z.tar", FILES, "w")):
        path.write_bytes(path.read_bytes()[: 600 if path.suffix == ".tar" else -30])
        with pytest.raises(ConfigError, match="truncated or damaged"), open_source(str(path), LIMIT):
            pass


def test_a_damaged_member_is_its_own_problem(tmp_path):
    path = make_zip(tmp_path / "z.zip", {"a.pt": os.urandom(1000), "b.pt": b"fine"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    source = ZipSource([path], LIMIT)
    with pytest.raises(ConfigError, match="checksum"):
        source.read("a.pt")
    assert source.read("b.pt") == b"fine"


def test_files_that_are_no_files_are_not_waited_for(folder):
    os.mkfifo(folder / "pipe.pt")
    source = FolderSource(str(folder), LIMIT)
    with pytest.raises(ConfigError, match="not a regular file"):
        source.read("pipe.pt")
    with pytest.raises(ConfigError, match="too large"):
        FolderSource(str(folder), 3).read("b.pt")


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        FolderSource(str(tmp_path / "nowhere"), LIMIT).names()


def test_hubs_need_their_package():
    fsspec.register_implementation("hf", "no_such_package.Hub", clobber=True, errtxt="install huggingface_hub")
    with pytest.raises(ConfigError, match="huggingface_hub"):
        FolderSource("hf://owner/name", LIMIT)


class Hub(AbstractFileSystem):
    """A stand-in for the hub's file system: the same protocol and paths, over HTTP from a server in the test."""

    protocol = "hf"
    cachable = False
    server = ""

    def ls(self, path, detail=True, **kwargs):
        with urlopen(f"{self.server}/{quote(path)}/", timeout=5) as answer:
            found = [line.split('"')[1] for line in answer.read().decode().splitlines() if line.startswith("<li>")]
        entries = [
            {
                "name": f"{path.rstrip('/')}/{name.rstrip('/')}",
                "type": "directory" if name.endswith("/") else "file",
                "size": 0 if name.endswith("/") else self._size(f"{path}/{name}"),
            }
            for name in found
        ]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path, **kwargs):
        return {"name": path, "type": "file", "size": self._size(path)}

    def cat_file(self, path, start=None, end=None, **kwargs):
        with urlopen(f"{self.server}/{quote(path)}", timeout=5) as answer:
            return answer.read()[start:end]

    def _size(self, path):
        with urlopen(f"{self.server}/{quote(path)}", timeout=5) as answer:
            return int(answer.headers["Content-Length"])


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    """A hub with the repository owner/name, on a real HTTP server."""
    for name, data in FILES.items():
        path = tmp_path / "hub" / "owner" / "name" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "hub")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.server = f"http://127.0.0.1:{server.server_port}"
    fsspec.register_implementation("hf", Hub, clobber=True)
    yield server
    server.shutdown()
    server.server_close()


def test_a_hub_repository_is_a_source(hub):
    with open_source("hf://owner/name", LIMIT) as source:
        assert source.names() == sorted(FILES)
        assert {name: source.read(name) for name in FILES} == FILES
        assert source.parallel_reads > 1
        with pytest.raises(ConfigError, match="too large"):
            FolderSource("hf://owner/name", 3).read("b.pt")


def test_no_network_is_said_and_stops_the_work(hub):
    source = FolderSource("hf://owner/name", LIMIT)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        Hub.server = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ConfigError, match="network"):
            source.names()
        with pytest.raises(StoreError, match=r"network|cannot be reached|failed at"):
            source.read("b.pt")
