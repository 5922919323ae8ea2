"""Members of a remote zip: which are chosen, in how few requests they come, and what is refused."""

import contextlib
import io
import random
import stat
import struct
import zipfile
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mzsane.errors import ConfigError, StoreError
from mzsane.fetch import http as remote
from mzsane.fetch import zip as remote_zip
from mzsane.fetch.http import RemoteFile
from mzsane.fetch.members import Member, locate_members, plan_spans, select_names, split_members
from mzsane.fetch.zip import RangeFile, RemoteZip
from tests.fetch.http_server import serve

URL = "/zoo.zip"
EPOCHS = range(1, 13)


@pytest.fixture(scope="module")
def running_server():
    with serve() as server:
        yield server


@pytest.fixture
def server(running_server, monkeypatch):
    monkeypatch.setattr(remote, "_BACKOFF", 0.01)
    running_server.forget()
    return running_server


def make_zoo(models=20, size=30_000, directories=False) -> dict[str, bytes]:
    """Return the members of a zoo in the published layout."""
    generator = random.Random(0)
    members = {}
    for model in range(models):
        home = f"zoo/NN_tune_trainable_{model:05d}_seed={model}"
        if directories:
            members[f"{home}/"] = b""
        members[f"{home}/params.json"] = b'{"model::type": "CNN"}'
        members[f"{home}/result.json"] = b'{"training_iteration": 0}\n' * len(EPOCHS)
        for epoch in EPOCHS:
            members[f"{home}/checkpoint_{epoch:06d}/checkpoints"] = generator.randbytes(size)
            members[f"{home}/checkpoint_{epoch:06d}/optimizer"] = generator.randbytes(size // 2)
    return members


def pack(members, method=zipfile.ZIP_STORED, comment=b"", streamed=False) -> bytes:
    """Return a zip; a streamed one has its sizes behind the data of its members."""
    target = io.BytesIO()
    if streamed:
        target.seekable = lambda: False
    with zipfile.ZipFile(target, "w", method) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
        packed.comment = comment
    return target.getvalue()


def fetch(server, epochs=None, patterns=(), piece_bytes=1 << 30) -> dict[str, bytes]:
    """Fetch members and return what the repacked zips hold."""
    archive = RemoteZip(RemoteFile(server.url + URL))
    groups = split_members(archive.select(epochs, patterns), piece_bytes)
    found = {}
    for group, spans in zip(groups, archive.plan(groups), strict=True):
        data = archive.repack(group, spans)
        assert len(data) <= piece_bytes or len(group) == 1
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            assert packed.testzip() is None
            found |= {name: packed.read(name) for name in packed.namelist()}
    return found


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("comment", [b"", b"c" * 60_000])
def test_chosen_epochs_come_with_little_else(server, method, streamed, comment):
    members = make_zoo()
    server.files[URL] = pack(members, method, comment, streamed)
    found = fetch(server, epochs=(6, 7))
    wanted = {
        name: data
        for name, data in members.items()
        if name.endswith((".json", "_000006/checkpoints", "_000007/checkpoints"))
    }
    assert found == wanted
    assert server.sent <= 1.1 * sum(map(len, wanted.values())) + len(comment)
    assert len(server.requests) <= 3 * 20 + 5


def test_all_members_come_in_few_requests(server):
    members = make_zoo(directories=True)
    server.files[URL] = pack(members)
    assert fetch(server) == {name: data for name, data in members.items() if not name.endswith("/")}
    assert len(server.requests) == 4
    assert server.sent <= len(server.files[URL]) + 4


@pytest.mark.parametrize("piece_bytes", [10_000, 65_536, 300_000])
def test_pieces_are_no_larger_than_asked(server, piece_bytes):
    members = make_zoo(models=3)
    server.files[URL] = pack(members)
    assert fetch(server, piece_bytes=piece_bytes) == members


def test_a_zip_of_many_members_is_read_as_zip64(server):
    members = {f"m{number // 7}/checkpoint_{number % 7}/checkpoints": b"" for number in range(70_000)}
    server.files[URL] = pack(members)
    assert len(fetch(server, epochs=(3,), patterns=("m1*",))) == 1_111


def test_a_zip_beyond_four_gigabytes_is_read(server, tmp_path):
    members = make_zoo(models=2)
    with (tmp_path / "zoo.zip").open("w+b") as file:
        file.truncate(5 << 30)  # a hole, which takes no space
        with zipfile.ZipFile(file, "a") as packed:
            for name, data in members.items():
                packed.writestr(name, data)
        server.files[URL] = file
        found = fetch(server, epochs=(6,))
    assert found == {name: members[name] for name in found}
    assert len(found) == 6
    assert server.sent < 200_000


def test_a_tail_that_was_kept_is_not_fetched_again(server):
    server.files[URL] = pack(make_zoo())
    tail = RemoteZip(RemoteFile(server.url + URL)).tail
    server.forget()
    archive = RemoteZip(RemoteFile(server.url + URL), tail)
    assert len(archive.select((3,), ())) == 60
    assert server.sent == 4


def test_broken_connections_within_members_are_taken_up(server):
    members = make_zoo(models=4)
    server.files[URL] = pack(members)
    server.faults.cut_after, server.faults.cut_answers = 100_000, 3
    assert fetch(server) == members


def test_a_damaged_member_is_named(server):
    members = make_zoo(models=2)
    server.files[URL] = pack(members)
    name = "zoo/NN_tune_trainable_00001_seed=1/checkpoint_000006/checkpoints"
    server.faults.flip_at = server.files[URL].index(members[name]) + 100
    with pytest.raises(ConfigError, match=r"member .*00001.*checkpoint_000006/checkpoints of .* is damaged \(Bad CRC"):
        fetch(server)


@pytest.mark.parametrize(
    "data",
    [b"PK\x03\x04" + b"x" * 50_000, b"PK", pack({"a": b"1" * 40_000})[:-10], pack({"a": b"1" * 40_000})[100:]],
    ids=["noise", "two bytes", "end cut", "start cut"],
)
def test_what_is_no_zip_is_refused(server, data):
    server.files[URL] = data
    with pytest.raises(ConfigError, match=r"zoo\.zip (is not a zip that can be read|is not safe to unpack)"):
        fetch(server)


def test_a_directory_that_claims_gigabytes_is_refused(server, monkeypatch):
    monkeypatch.setattr(remote_zip, "_LARGEST_DIRECTORY", 50_000)
    server.files[URL] = pack({f"{number}": b"" for number in range(2_000)})
    with pytest.raises(ConfigError, match="its directory claims over"):
        fetch(server)


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/root", "C:/windows", "a\\..\\up", "a\0b", ".."])
def test_names_that_lead_out_are_refused(server, name):
    good, other = "a/checkpoint_000001/checkpoints", "n" * len(name)
    # zipfile writes no such names, so they are put in afterwards.
    data = pack({good: b"good", other: b"bad"})
    server.files[URL] = data.replace(other.encode(), name.encode())
    with pytest.raises(ConfigError, match=r"not safe to unpack: member .* has a name that leads out of its folder"):
        fetch(server)
    assert fetch(server, epochs=(1,)) == {good: b"good"}


def test_links_are_refused(server):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as packed:
        packed.writestr(info, "/etc/passwd")
    server.files[URL] = target.getvalue()
    with pytest.raises(ConfigError, match="'link' is a link or a device"):
        fetch(server)


def test_encrypted_members_are_refused(server):
    data = bytearray(pack({"a": b"secret"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    server.files[URL] = bytes(data)
    with pytest.raises(ConfigError, match="'a' is encrypted"):
        fetch(server)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_compressions_are_refused(server, method):
    server.files[URL] = pack({"a": b"1" * 1000}, method)
    with pytest.raises(ConfigError, match=f"'a' is compressed by method {method}"):
        fetch(server)


def test_bombs_are_refused(server):
    server.files[URL] = pack({"a": bytes(1 << 25)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ConfigError, match=r"'a' unpacks to 33554432 bytes, over 200 times what it is"):
        fetch(server)


def test_a_member_that_unpacks_to_more_than_it_says_is_cut_off(server):
    data = bytearray(pack({"a": bytes(100_000)}, zipfile.ZIP_DEFLATED))
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 1000)
    server.files[URL] = bytes(data)
    with pytest.raises(ConfigError, match=r"member a of .* is damaged \(Bad CRC"):
        fetch(server)


def test_a_member_that_unpacks_to_less_than_it_says_is_noticed(server):
    data = bytearray(pack({"a": bytes(1000)}, zipfile.ZIP_DEFLATED))
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 2000)
    server.files[URL] = bytes(data)
    with pytest.raises(ConfigError, match="unpacks to 1000 bytes and not to the 2000 that are promised"):
        fetch(server)


def test_members_that_share_bytes_are_refused(server):
    data = bytearray(pack({"a": b"1" * 1000, "b": b"2" * 1000}))
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    struct.pack_into("<I", data, second + 42, 0)
    server.files[URL] = bytes(data)
    with pytest.raises(ConfigError, match="that of two members"):
        fetch(server)
    struct.pack_into("<I", data, second + 42, 20)
    server.files[URL] = bytes(data)
    with pytest.raises(ConfigError, match="'a' lies within another member"):
        fetch(server)


def test_names_that_are_there_twice_are_refused(server):
    server.files[URL] = pack({"a": b"1", "b": b"2"}).replace(b"b", b"a")
    with pytest.raises(ConfigError, match="that of two members"):
        fetch(server)


def test_a_file_that_changes_between_the_members_is_noticed(server):
    server.files[URL] = pack(make_zoo(models=2))
    archive = RemoteZip(RemoteFile(server.url + URL))
    members = archive.select(None, ())
    server.faults.etag = '"v2"'
    with pytest.raises(StoreError, match="changed on the server"):
        archive.repack(members, plan_spans(members, 0))


@given(
    data=st.binary(min_size=1, max_size=200), flips=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4)
)
def test_mutated_zips_are_read_or_refused(running_server, data, flips):
    packed = bytearray(pack({"m/checkpoint_000001/checkpoints": data, "m/params.json": b"{}"}, zipfile.ZIP_DEFLATED))
    for place, value in flips:
        packed[place % len(packed)] = value
    running_server.forget()
    running_server.files[URL] = bytes(packed)
    with contextlib.suppress(ConfigError):
        fetch(running_server)


@given(
    positions=st.lists(st.tuples(st.integers(0, 60_000), st.integers(1, 9_000)), min_size=1, max_size=12),
    spans=st.lists(st.integers(0, 60_000), max_size=6, unique=True),
)
def test_a_range_file_reads_what_is_there(running_server, positions, spans):
    data = random.Random(1).randbytes(60_000)
    running_server.forget()
    running_server.files[URL] = data
    ordered = sorted(spans)
    with RangeFile(RemoteFile(running_server.url + URL)) as file:
        file.plan([remote_zip.Span(*pair) for pair in zip(ordered[::2], ordered[1::2], strict=False)])
        for start, size in positions:
            file.seek(start)
            assert file.read(size) == data[start : start + size]
            assert file.tell() == min(start + size, max(start, 60_000))


@given(
    sizes=st.lists(st.tuples(st.integers(0, 5_000_000), st.integers(1, 100_000)), min_size=1, max_size=40),
    spare=st.integers(0, 10_000_000),
)
def test_spans_hold_all_members_and_no_more_than_the_spare(sizes, spare):
    members, at = [], 0
    for gap, size in sizes:
        members.append(Member(zipfile.ZipInfo("m"), at + gap, at + gap + size))
        at += gap + size
    spans = plan_spans(members, spare)
    assert sum(span.stop - span.start for span in spans) - sum(member.size for member in members) <= spare
    assert all(any(span.start <= m.start and m.stop <= span.stop for span in spans) for m in members)
    assert all(before.stop <= after.start for before, after in pairwise(spans))


NAMES = [
    "zoo/a/params.json",
    "zoo/a/result.json",
    "zoo/a/checkpoint_1/checkpoints",
    "zoo/a/checkpoint_0002/checkpoints",
    "zoo/a/checkpoint_0002/optimizer",
    "zoo/b/params.json",
    "zoo/b/checkpoint_000000/checkpoints",
    "zoo/b/checkpoint_000002/checkpoints",
    "zoo/readme.txt",
]


@pytest.mark.parametrize(
    ("epochs", "patterns", "chosen"),
    [
        (None, (), range(9)),
        ((0,), (), (5, 6)),
        ((1,), (), (0, 1, 2)),
        ((2,), (), (0, 1, 3, 5, 7)),
        ((0, 2), ("*/b/*",), (5, 6, 7)),
        ((2,), ("*",), (0, 1, 3, 4, 5, 7, 8)),
        (None, ("*.txt",), (8,)),
        (None, ("zoo/?/checkpoint_*2/checkpoints",), (0, 1, 3, 5, 7)),
    ],
)
def test_names_are_chosen_by_epoch_and_pattern(epochs, patterns, chosen):
    assert select_names(NAMES, epochs, patterns, "zoo.zip") == [NAMES[number] for number in chosen]


@pytest.mark.parametrize(
    ("names", "epochs", "patterns", "text"),
    [
        (NAMES, (2, 9, 11), (), r"zoo\.zip has no checkpoints of epoch 9, 11; it has those of 0 to 2"),
        (["readme.txt"], (3,), (), "it has those of none: nothing in it lies in a folder such as checkpoint_000025"),
        (NAMES, None, ("*.csv",), r"no member of zoo\.zip fits \*\.csv; the archive holds zoo/a/params\.json, "),
        ([], None, (), "holds no files"),
        (["folder/"], None, (), "holds no files"),
    ],
)
def test_a_choice_of_nothing_is_explained(names, epochs, patterns, text):
    with pytest.raises(ConfigError, match=text):
        select_names(names, epochs, patterns, "zoo.zip")


@pytest.mark.parametrize(
    ("name", "size", "reason"), [("zoo\\a.pt", 8, "has backslashes"), ("a.pt", 2**33, "at most 4 GiB are")]
)
def test_members_that_are_not_fetched_say_why(name, size, reason):
    info = zipfile.ZipInfo("a.pt")
    info.filename = info.orig_filename = name
    info.file_size, info.compress_size, info.header_offset = size, size, 0
    with pytest.raises(ConfigError, match=reason):
        locate_members([info], 2**40, [name], "zoo.zip")
