"""Download a published zoo, or only the epochs of it that are needed, straight into the object store.

The ARCHIVE artifact holds either `members-NNNNN.zip`, zips of the members asked for (from a zip on a server with byte
ranges), or `part-NNNNN.bin`, the whole file in pieces (from anything else, and when the checksum of the file is given).
A download resumes at the piece. `open_archive` reads both.
"""

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from mzsane.addresses import store_address
from mzsane.config.reading import DownloadConfig
from mzsane.errors import ConfigError, CorruptArtifactError, StoreError
from mzsane.fetch.archives import ZipSource
from mzsane.fetch.catalog import find_entry
from mzsane.fetch.http import RemoteFile
from mzsane.fetch.members import split_members
from mzsane.fetch.parts import fetch_parts, verify_parts
from mzsane.fetch.pieces import Piece, PieceNotes, Progress, fetch_pieces
from mzsane.fetch.sources import FolderSource, Source, open_source
from mzsane.fetch.zip import RemoteZip
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.store.artifacts import Artifact, ArtifactStore, Work

VERSION = 1
_SOURCE = "source.json"
_TAIL = "tail.bin"
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")


def plan_download(config: DownloadConfig) -> Work:
    """Name the work of a download: the file, by its address, and what is asked of it.

    Raises:
        ConfigError: the source is not in the catalogue, or the catalogue knows no file of it.
    """
    url, checksums = _resolve(config)
    # A query may hold a token, and what is named here can be read by everybody who reads the artifact.
    return Work("archive", VERSION, {**config.recipe(), **checksums, "source": store_address(url)})


def download(config: DownloadConfig, store: ArtifactStore, sink: MetricSink = NO_SINK) -> Artifact:
    """Download a file or some members of it, or open it when it was downloaded before.

    Killed at any point, the next call continues after the last finished pieces. Progress is in megabytes.

    Raises:
        ConfigError: the source, an epoch or a member is not there, access is denied, or the archive is not safe.
        StoreError: the server or the store fails, or a checksum is wrong.
    """
    work = plan_download(config)
    if found := store.find(work.ref):
        return found
    url, checksums = _resolve(config)
    progress = Progress(sink)
    remote = RemoteFile(url, progress.wait)
    if remote.size == 0:
        raise ConfigError(f"{remote.address} is empty; use another source")
    notes = PieceNotes(work, store)
    file = _name_file(url)
    packed = remote.ranges and not any(checksums.values()) and _is_zip(remote, file)
    if config.selective and not packed:
        raise ConfigError(_explain_whole(remote))
    layout = "members" if packed else "parts"
    _discard_other(notes, {"version": remote.version, "bytes": remote.size, "layout": layout})
    if packed:
        names, members = _fetch_members(config, remote, notes, progress)
    else:
        names, members = fetch_parts(config.piece_bytes, remote, notes, progress), None
    entries = notes.read()
    if not entries.keys() >= set(names):
        if found := store.find(work.ref):  # another run was first, and has tidied up
            notes.partial.clear()
            return found
        raise StoreError(f"pieces of {remote.address} vanished from {store.address(work.ref)}: run again to continue")
    if not packed:
        verify_parts([entries[name] for name in names], checksums, remote, notes)
    counts = {
        "layout": layout,
        "file": file,
        "version": remote.version,
        "members": members,
        "bytes": sum(entries[name].bytes for name in names),
    }
    return store.publish(work, {name: entries[name] for name in names}, counts)


def archive_paths(archive: Artifact, folder: Path) -> list[Path]:
    """Return local paths of the archives that hold the files: several zips, or the one file that was downloaded.

    Args:
        archive: a download.
        folder: where a file that is stored in parts is put together, under its own name; the next call finds it there.

    Raises:
        CorruptArtifactError: a file of the artifact is missing or damaged.
        StoreError: the folder cannot be written.
    """
    names = sorted(archive.manifest.files)
    if archive.manifest.counts["layout"] == "members":
        return [archive.path(name) for name in names]
    target = folder / archive.ref.fingerprint / archive.manifest.counts["file"]
    if target.exists() and target.stat().st_size == archive.manifest.counts["bytes"]:
        return [target]
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as joined:
            for name in names:
                with archive.path(name).open("rb") as part:
                    shutil.copyfileobj(part, joined)
        fresh.replace(target)
    except OSError as error:
        raise StoreError(
            f"{target} cannot be put together: {error}; free some space or choose another folder"
        ) from None
    finally:
        fresh.unlink(missing_ok=True)
    return [target]


@contextmanager
def open_archive(archive: Artifact, max_file_bytes: int, folder: Path | None = None) -> Iterator[Source]:
    """Open a download as a source of files.

    Args:
        archive: a download.
        max_file_bytes: larger files are not read.
        folder: see `archive_paths`; if unset, a temporary one that goes when the source is closed.

    Raises:
        ConfigError: what was downloaded is damaged or not safe to unpack.
        CorruptArtifactError: a file of the artifact is missing or damaged.
    """
    if archive.manifest.counts["layout"] == "members":
        yield ZipSource(archive_paths(archive, Path()), max_file_bytes, archive.address)
        return
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mzsane-")))
        (path,) = archive_paths(archive, place)
        source = stack.enter_context(open_source(str(path), max_file_bytes))
        # What is no archive is a single file, and lies in a folder of its own.
        yield FolderSource(str(path.parent), max_file_bytes) if isinstance(source, FolderSource) else source


def _resolve(config: DownloadConfig) -> tuple[str, dict[str, str | None]]:
    """Return the address of the file, and the checksums of the whole file by the name of the method."""
    checksums = {"sha256": config.sha256, "md5": config.md5}
    if "://" in config.source:
        return config.source, checksums
    entry = find_entry(config.source)
    if not config.selective:
        checksums["md5"] = config.md5 or entry.md5
    return entry.url, checksums


def _name_file(url: str) -> str:
    """Return the name of the file at an address: the last part of the path that has a suffix, if one has."""
    parts = [unquote(part).replace("/", "_") for part in urlsplit(url).path.split("/")]
    named = [part for part in parts if part.strip(".")]
    return next((part for part in reversed(named) if PurePosixPath(part).suffix), named[-1] if named else "archive")


def _is_zip(remote: RemoteFile, file: str) -> bool:
    # Checkpoints of PyTorch and npz files are zips as well, and are wanted as they are.
    return remote.start in _ZIP_STARTS and PurePosixPath(file).suffix.lower() in ("", ".zip")


def _explain_whole(remote: RemoteFile) -> str:
    reason = "is not a zip" if remote.ranges else "lies on a server that sends no byte ranges"
    size = f" ({remote.size / 1e6:,.0f} MB)" if remote.size else ""
    return (
        f"{remote.address} {reason}, so that only the whole file{size} can be fetched: leave out epochs and members, "
        "and choose when the archive is read"
    )


def _discard_other(notes: PieceNotes, source: dict[str, Any]) -> None:
    """Remove the pieces of an earlier attempt when they are of another version of the file."""
    try:
        same = json.loads(notes.partial.read(_SOURCE)) == source
    except (CorruptArtifactError, FileNotFoundError):
        same = False
    if not same:
        notes.discard()
        notes.partial.write(_SOURCE, json.dumps(source).encode())


def _fetch_members(
    config: DownloadConfig, remote: RemoteFile, notes: PieceNotes, progress: Progress
) -> tuple[list[str], int]:
    """Fetch the members asked for; return the names of the pieces and the number of members."""
    try:
        archive = RemoteZip(remote, notes.partial.read(_TAIL))
    except (CorruptArtifactError, FileNotFoundError):
        archive = RemoteZip(remote)
        notes.partial.write(_TAIL, archive.tail)
    members = archive.select(config.epochs, config.members)
    groups = split_members(members, config.piece_bytes)
    plans = archive.plan(groups)
    pieces = [
        Piece(f"members-{number:05d}.zip", sum(member.size for member in group), partial(archive.repack, group, spans))
        for number, (group, spans) in enumerate(zip(groups, plans, strict=True))
    ]
    note = f"{len(members)} members in {len(pieces)} pieces, {sum(map(len, plans))} requests"
    fetch_pieces(pieces, remote, notes, progress, note)
    return [piece.name for piece in pieces], len(members)
