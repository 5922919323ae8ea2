"""Members of a zip archive: which are wanted, whether they are safe, and how few requests bring them."""

import fnmatch
import re
import stat
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath

from mzsane.errors import ConfigError

# What tells about a model in the published layout; it comes with every chosen member of the model.
_DESCRIPTIONS = ("params.json", "result.json", "config.json")
_CHECKPOINTS = "*checkpoint_*/checkpoints"
_EPOCH = re.compile(r"(?:^|/)checkpoint_(\d+)/")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x41  # flag bits
_HEADER_BYTES = 30  # of a member, without its name
_END_BYTES = 98  # records at the end of a zip
_BOMB_BYTES = 1 << 24  # smaller members may be packed as tightly as they like
_BOMB_RATIO = 200
_LARGEST_MEMBER = 1 << 32  # bytes; a member is unpacked in memory
_WIDEST_GAP = 1 << 22  # bytes; a request is cheaper than moving more


@dataclass(frozen=True)
class Member:
    """A member of a remote zip and where its header and data lie in the file, from `start` to before `stop`."""

    info: zipfile.ZipInfo
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes that have to be moved for it."""
        return self.stop - self.start


@dataclass(frozen=True)
class Span:
    """Bytes of a remote file that come in one request, from `start` to before `stop`."""

    start: int
    stop: int


def select_names(names: Iterable[str], epochs: Sequence[int] | None, patterns: Sequence[str], where: str) -> list[str]:
    """Choose members by the epochs of their checkpoints and by glob patterns, in the order of the names.

    `params.json`, `result.json` and `config.json` come with every chosen member that lies in or below their folder.

    Args:
        names: the names of all members.
        epochs: the epochs wanted; None for all. What lies in no checkpoint folder has no epoch and is judged by the
            patterns alone.
        patterns: globs on the whole name; with none, everything, or with epochs all checkpoints.
        where: what the archive is called, for the error text.

    Raises:
        ConfigError: the archive is empty, an epoch is not there, or nothing is chosen.
    """
    files = [name for name in names if not name.endswith("/")]
    if not files:
        raise ConfigError(f"{where} holds no files")
    if epochs is None and not patterns:
        return files
    folders = {name: match[1] for name in files if (match := _EPOCH.search(name))}
    there = {int(number) for number in folders.values()}
    if missing := sorted(set(epochs or ()) - there):
        raise ConfigError(
            f"{where} has no checkpoints of epoch {', '.join(map(str, missing))}; it has those of {_show_epochs(there)}"
        )
    fits = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns or (_CHECKPOINTS,))).match
    wanted = set(epochs) if epochs is not None else there
    chosen = {name for name in files if fits(name) and (name not in folders or int(folders[name]) in wanted)}
    if not chosen:
        some = ", ".join(files[:3])
        raise ConfigError(f"no member of {where} fits {', '.join(patterns)}; the archive holds {some}, ...")
    homes = {str(parent) for name in chosen for parent in PurePosixPath(name).parents}
    return [name for name in files if name in chosen or _describes(name, homes)]


def locate_members(
    infos: Sequence[zipfile.ZipInfo], directory_start: int, names: Sequence[str], where: str
) -> list[Member]:
    """Find where the named members lie, in the order of the file.

    Raises:
        ConfigError: one of them leads out of its folder, is a link, is encrypted, unpacks to far more than it is, is
            compressed in a rare way, lies within another, or is there twice.
    """
    starts = sorted({info.header_offset for info in infos} | {directory_start})
    stops = dict(pairwise(starts))
    wanted = set(names)
    members = []
    for info in infos:
        if info.filename in wanted:
            stop = stops.get(info.header_offset, info.header_offset)
            if problem := _find_problem(info, stop):
                raise ConfigError(f"{where} is not safe to unpack: member {info.orig_filename!r} {problem}")
            members.append(Member(info, info.header_offset, stop))
    members.sort(key=lambda member: member.start)
    if len(members) != len(wanted) or len({member.start for member in members}) != len(members):
        raise ConfigError(f"{where} is not safe to unpack: a name or a place in it is that of two members")
    return members


def split_members(members: Sequence[Member], piece_bytes: int) -> list[list[Member]]:
    """Cut members in order into pieces of at most so many unpacked bytes; a larger member is a piece of its own."""
    pieces: list[list[Member]] = []
    filled = piece_bytes
    for member in members:
        # Its name is in the zip twice, each time behind a header.
        size = member.info.file_size + 2 * (len(member.info.orig_filename.encode()) + 64)
        if filled + size > piece_bytes:
            pieces.append([])
            filled = _END_BYTES
        pieces[-1].append(member)
        filled += size
    return pieces


def plan_spans(members: Sequence[Member], spare_bytes: int) -> list[Span]:
    """Plan the requests for members: neighbours share one, and gaps are bridged, the narrowest first.

    Args:
        members: in the order of the file.
        spare_bytes: how many unwanted bytes may be moved to save requests.
    """
    gaps = sorted((after.start - before.stop, after.start) for before, after in pairwise(members))
    bridged = set()
    for gap, start in gaps:
        spare_bytes -= gap
        if spare_bytes < 0 or gap > _WIDEST_GAP:
            break
        bridged.add(start)
    spans: list[Span] = []
    for member in members:
        if member.start in bridged:
            spans[-1] = Span(spans[-1].start, member.stop)
        else:
            spans.append(Span(member.start, member.stop))
    return spans


def _describes(name: str, homes: set[str]) -> bool:
    path = PurePosixPath(name)
    return path.name in _DESCRIPTIONS and str(path.parent) in homes


def _find_problem(info: zipfile.ZipInfo, stop: int) -> str:
    name = info.orig_filename
    parts = re.split(r"[/\\]", name)
    if not name or "\0" in name or name.startswith(("/", "\\")) or ".." in parts or name[1:2] == ":":
        return "has a name that leads out of its folder"
    if len(parts) > len(name.split("/")):
        return "has backslashes for folders, as some tools of Windows write them: download the whole file and read that"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link or a device and not a file"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return f"is compressed by method {info.compress_type}, only stored and deflated ones can be read"
    if info.file_size > _LARGEST_MEMBER:
        return f"unpacks to {info.file_size} bytes, and at most {_LARGEST_MEMBER >> 30} GiB are: choose others"
    if info.file_size > _BOMB_BYTES and info.file_size > _BOMB_RATIO * info.compress_size:
        return f"unpacks to {info.file_size} bytes, over {_BOMB_RATIO} times what it is"
    if info.header_offset < 0 or info.header_offset + _HEADER_BYTES + info.compress_size > stop:
        return "lies within another member or outside of the file"
    return ""


def _show_epochs(epochs: set[int]) -> str:
    if not epochs:
        return "none: nothing in it lies in a folder such as checkpoint_000025"
    ordered = sorted(epochs)
    if ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered[:20])) + (", ..." if len(ordered) > 20 else "")
