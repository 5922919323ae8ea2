"""Files made to do harm: each is refused with one line, soon, and without the memory that it asks for."""

import gzip
import io
import os
import pickle
import resource
import struct
import tarfile
import time
import zipfile

import numpy as np
import polars as pl
import pytest
import torch

from mzsane.config import ExecutionConfig
from mzsane.config.reading import ReadConfig
from mzsane.errors import ConfigError
from mzsane.fetch.archives import TarSource, ZipSource
from mzsane.fetch.sources import open_source
from mzsane.zoo.formats.checkpoint import CheckpointReader
from mzsane.zoo.read import read_zoo
from mzsane.zoo.shards import read_index

LIMIT = 2**30
SECONDS = 5.0
GROWTH = 300_000  # kB


def pack(pickled, records=None, packing=zipfile.ZIP_STORED):
    """Return a torch zip with a pickle of one's own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/byteorder", "little")
        for name, data in (records or {"data/0": bytes(8)}).items():
            archive.writestr(f"a/{name}", data)
        archive.writestr("a/version", "3\n")
    return buffer.getvalue()


def legacy(pickled):
    """Return a file of the older form with a pickle of one's own."""
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + pickled + pickle.dumps([], 2)


def nest(width, levels):
    """Return lists in which each holds the one before many times."""
    value = [torch.ones(1)]
    for _ in range(levels):
        value = [value] * width
    return value


def loop(width):
    """Return a list that holds itself many times."""
    value = []
    value.extend([value] * width)
    return value


def collide():
    """Return tuples whose hashes are equal, as keys of one dict: -1 and -2 have one hash."""
    keys = [()]
    for _ in range(11):
        keys = [(key, number) for key in keys for number in (-1, -2)]
    return dict.fromkeys(keys, 1.0)


def global_call(module, name, arguments):
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


HUGE = b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85"
STORAGE = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + HUGE[:-1]
DEEP_KEY = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."
WIDE_KEY = b"\x80\x02})" + b"".join(b"q\x00h\x00\x86" for _ in range(60)) + b"K\x01s."
WIDE_SET = b"\x80\x02c__builtin__\nset\n])" + b"q\x00h\x00\x86" * 60 + b"a\x85R."

PICKLES = {
    "lists in lists": (lambda: pickle.dumps([[[]] * 3] * 3, 2), "no tensors"),
    "a bytearray": (lambda: global_call("builtins", "bytearray", HUGE), "bytearray"),
    "a bytearray by its old name": (lambda: global_call("__builtin__", "bytearray", HUGE), "bytearray"),
    "a bytearray by another call": (
        lambda: global_call("torch._tensor", "_rebuild_from_type_v2", b"(cbuiltins\nbytearray\nN" + HUGE + b"Nt"),
        "bytearray",
    ),
    "a tensor": (lambda: global_call("torch", "FloatTensor", HUGE), "out of nothing"),
    "a storage": (lambda: global_call("torch.storage", "UntypedStorage", HUGE), "out of nothing"),
    "a tensor by its class": (lambda: b"\x80\x02ctorch\nTensor\n" + HUGE + b"\x81.", "out of nothing"),
    "a rebuilt call": (
        lambda: global_call("torch._tensor", "_rebuild_from_type_v2", b"(ctorch\nTensor\nN" + HUGE + b"Nt"),
        "something else",
    ),
    "a record of any size": (lambda: STORAGE + b"tQ.", "more numbers than"),
    "a key of deep tuples": (lambda: DEEP_KEY, "tuples as keys"),
    "a key of wide tuples": (lambda: WIDE_KEY, "tuples as keys"),
    "a set of wide tuples": (lambda: WIDE_SET, "tuples as keys"),
    "keys that collide": (lambda: pickle.dumps(collide(), 2), "tuples as keys"),
    "numbers that collide": (lambda: pickle.dumps({k * (2**61 - 1): 1 for k in range(5, 99)}, 2), "beyond 64 bits"),
    "a number of many bytes": (lambda: pickle.dumps({"epoch": 2**1000}, 2), "no plain numbers"),
    "a large epoch": (lambda: pickle.dumps({"epoch": 2**70, "model": {}}, 2), r"no epoch: .* 1180591620717411303424"),
    "instructions without end": (lambda: b"\x80\x02" + b"N0" * 2_000_000 + b".", "Unsupported operand|instructions"),
    "items without end": (lambda: b"\x80\x02](" + b"N" * 4_000_000 + b"e.", "instructions"),
    "marks without end": (lambda: b"\x80\x02" + b"(" * 3_000_000 + b".", "levels deep"),
    "nothing on the stack": (lambda: b"\x80\x02R.", "makes no sense"),
    "no memory of it": (lambda: b"\x80\x02h\x07.", "makes no sense"),
    "a string beyond the end": (lambda: b"\x80\x02X\xff\xff\xff\xffabc.", "makes no sense"),
}


def refuse(data, reason, limit=LIMIT):
    """Read a file three times, as the reader learns pickles, and return nothing but its refusal."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    reader = CheckpointReader(limit)
    for _ in range(3):
        with pytest.raises(ConfigError, match=reason) as caught:
            reader.read(data)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
    assert time.monotonic() - start < 3 * SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", [pack, legacy, bytes], ids=["zip", "legacy", "plain"])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_make_no_more_than_there_is(kind, form):
    make, reason = PICKLES[kind]
    data = make()
    if form is bytes and kind in ("lists in lists", "a large epoch"):
        reason = "magic"  # a pickle alone is none of torch's
    refuse(form(data), reason)


@pytest.mark.parametrize("make", [lambda: loop(1000), lambda: nest(1000, 6), lambda: {"model": loop(500)}])
def test_lists_that_hold_themselves_are_looked_at_once(make, to_bytes):
    refuse(to_bytes(make()), "no tensors|too large: .*lists within lists")


def test_records_that_unpack_to_more_are_not_unpacked(to_bytes, make_state):
    state = to_bytes(make_state(1))
    again = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(state)) as old, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refuse(again.getvalue(), r"^packed anew: a zip tool .*\(zip -0\)")
    pickled = pickle.dumps({}, 2)
    bomb = pack(pickled, {f"data/{number}": bytes(2**24) for number in range(12)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**20
    refuse(bomb, "^too large: a bomb, ")
    refuse(bomb, "^too large: .*max_file_bytes", limit=2**24)


def test_members_within_each_other_are_refused():
    data = bytearray(pack(pickle.dumps({}, 2), {f"data/{number}": bytes(4000) for number in range(40)}))
    first = data.find(b"PK\x01\x02")
    assert first > 0
    at, places = first, []
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        places.append(at)
        at += 1
    for place in places:  # all are the whole file
        data[place + 20 : place + 28] = struct.pack("<II", first, first)
    refuse(bytes(data), "within each other")


def test_arrays_that_claim_or_unpack_to_more_are_refused():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, w=np.zeros(2**24, dtype=np.float32))
    refuse(buffer.getvalue(), "^too large: a bomb")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    lying = io.BytesIO()
    with zipfile.ZipFile(lying, "w") as archive:
        archive.writestr("w.npy", header.getvalue() + bytes(16))
    refuse(lying.getvalue(), "truncated or damaged|too large")


def test_safetensors_claim_no_more_than_there_is():
    for length in (2**40, 2**25, 900):
        refuse(length.to_bytes(8, "little") + b'{"w":' + bytes(50), "truncated or damaged|no checkpoint")


def make_tar(path, edit):
    """Write a tar of a good member and one whose header is edited."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("good.pt", "bad.pt"):
            member = tarfile.TarInfo(name)
            member.size = 600
            if name == "bad.pt":
                edit(member)
            archive.addfile(member, io.BytesIO(bytes(600)))


@pytest.mark.parametrize("size", ["-1000", "-512", "-99999999999", "1" * 30])
def test_sizes_that_make_no_sense_end_a_tar(size, tmp_path):
    make_tar(tmp_path / "z.tar", lambda member: member.pax_headers.update(size=size))
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"is no tar file, or truncated or damaged") as caught:
        TarSource(tmp_path / "z.tar", LIMIT)
    assert time.monotonic() - start < SECONDS
    assert "\n" not in str(caught.value)


def test_a_header_of_any_size_ends_a_tar(tmp_path):
    make_tar(tmp_path / "z.tar", lambda member: member.pax_headers.update(comment="x" * 2**22))
    with pytest.raises(ConfigError, match="header of"):
        TarSource(tmp_path / "z.tar", LIMIT)


def test_many_members_need_little_memory(tmp_path):
    with tarfile.open(tmp_path / "z.tar", "w") as archive:
        for number in range(20_000):
            archive.addfile(tarfile.TarInfo(f"{number}.txt"))
    assert len(TarSource(tmp_path / "z.tar", LIMIT).names()) == 20_000


def test_a_gzip_bomb_ends_where_it_begins(tmp_path):
    with gzip.open(tmp_path / "z.tar.gz", "wb", compresslevel=6) as file:
        file.write(os.urandom(2**18))
        for _ in range(80):
            file.write(bytes(2**22))
    before = set(tmp_path.parent.iterdir())
    with pytest.raises(ConfigError, match="unpacks to more than"), open_source(str(tmp_path / "z.tar.gz"), LIMIT):
        pass
    assert set(tmp_path.parent.iterdir()) == before


def test_a_source_with_all_of_them_becomes_a_zoo(tmp_path, store, make_state, to_bytes):
    folder = tmp_path / "zoo"
    folder.mkdir()
    for number in range(10):
        (folder / f"good_{number}.pt").write_bytes(to_bytes(make_state(number)))
    bad = {kind: pack(make()) for kind, (make, _) in PICKLES.items() if "end" not in kind}
    for number, data in enumerate(bad.values()):
        (folder / f"bad_{number}.pt").write_bytes(data)
    (folder / "a_loop.pt").symlink_to("a_loop.pt")
    (folder / "broken.pt").symlink_to("nowhere.pt")
    with open(os.fsencode(str(folder)) + b"/a_\xff\xfe.pt", "wb") as file:  # noqa: PTH123
        file.write(to_bytes(make_state(99)))
    zoo = read_zoo(ReadConfig(name="zoo", source=str(folder), max_rejected=0.9), store, ExecutionConfig(processes=1))
    assert read_index(zoo)["model"].to_list() == [f"good_{number}" for number in range(10)]
    rejected = pl.read_parquet(zoo.path("rejected.parquet"))
    assert len(rejected) == len(bad) + 3
    assert rejected["reason"].str.contains("\n").sum() == 0
    reasons = " ".join(rejected["reason"])
    assert "a link that leads to itself" in reasons
    assert "not UTF-8" in reasons


def test_zips_of_other_tools_are_read_or_explained(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in (
            "zoo\\a\\1.pt",
            "b\u00a02.pt",
            "\u6a21 3.pt",
            "inner.zip",
            "more.tar.xz",
            "old.pth.tar",
            "x\u202e.pt",
        ):
            info = zipfile.ZipInfo(name)
            info.filename = name
            archive.writestr(info, b"1")
        archive.writestr("folder\\", b"")
    source = ZipSource([tmp_path / "z.zip"], LIMIT)
    assert source.names() == sorted(["zoo/a/1.pt", "b\u00a02.pt", "\u6a21 3.pt", "old.pth.tar"])
    assert source.read("zoo/a/1.pt") == b"1"
    refused = source.refused()
    assert set(refused) == {"inner.zip", "more.tar.xz", "x\u202e.pt"}
    assert "unpack it" in refused["inner.zip"]
    assert "U+202E" in refused["x\u202e.pt"]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("z.tar.xz", "unpack it"),
        ("z.tar.bz2", "unpack it"),
        ("z.7z", "unpack it"),
        ("z.zip.001", "join or unpack the parts"),
        ("z.z01", "join or unpack the parts"),
        ("z.part1.rar", "join or unpack the parts"),
    ],
)
def test_a_file_that_is_no_source_says_what_to_do(name, advice, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with open_source(str(tmp_path / name), LIMIT) as source, pytest.raises(ConfigError, match=advice):
        source.names()
