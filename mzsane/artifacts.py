"""The artifact store: fingerprint, manifest, atomic publish, verified open.

An artifact is a folder `<root>/<kind>/<fingerprint>/` of data files and a `manifest.json` that is written last and
only if there is none yet. It exists if and only if its manifest does, and never changes afterwards. The stored name
of a data file carries the start of its hash, so that two writers of one artifact cannot overwrite each other's files:
the first manifest wins, and the second writer removes what the winner does not name.

Work in progress (chunks, training checkpoints) lives in `<root>/partial/<kind>/<fingerprint>/` until its artifact is
out.
"""

import hashlib
import importlib.metadata
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict

from mzsane.errors import CorruptArtifactError
from mzsane.manifest import MANIFEST, REMEDY, SCHEMA_VERSION, Manifest, read_manifest
from mzsane.manifest import FileEntry as FileEntry
from mzsane.storage import Storage, default_cache, find_options

_DIGEST_BYTES = 32  # of sha256
_LIBRARIES = ("mzsane", "torch", "numpy", "polars", "pyarrow", "safetensors", "scikit-learn", "matplotlib", "pillow")


class ArtifactRef(BaseModel):
    """The name of an artifact: small, and the only thing about it that crosses a task border."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.fingerprint}"

    @classmethod
    def parse(cls, text: str) -> "ArtifactRef":
        """Read what `str` gives, as the inputs of a manifest are written."""
        kind, _, fingerprint = text.partition("/")
        return cls(kind=kind, fingerprint=fingerprint)


@dataclass(frozen=True)
class Work:
    """A piece of work that leads to one artifact, known before it is done.

    Attributes:
        kind: what is made: zoo, tokens, backbone, ...
        version: the stage's `VERSION`.
        config: every setting that shapes the result, as JSON data.
        inputs: the artifacts that are read, by role.
        seed: the root seed, for the manifest; it must be in `config` too.
    """

    kind: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, ArtifactRef] = field(default_factory=dict)
    seed: int = 0

    @cached_property
    def ref(self) -> ArtifactRef:
        """The artifact's name: sha256 of kind, version, config and input fingerprints in canonical JSON."""
        identity = {
            "kind": self.kind,
            "version": self.version,
            "config": self.config,
            "inputs": {role: str(ref) for role, ref in self.inputs.items()},
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return ArtifactRef(kind=self.kind, fingerprint=hashlib.sha256(text.encode()).hexdigest())


class Artifact:
    """A published artifact. Files are verified against the manifest when they are read."""

    def __init__(self, store: "ArtifactStore", manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self.ref = ArtifactRef(kind=manifest.kind, fingerprint=manifest.fingerprint)

    @property
    def address(self) -> str:
        """The artifact's URL."""
        return self.store.address(self.ref)

    def path(self, name: str) -> Path:
        """Return a local path of a data file whose bytes have been verified; a remote file is cached first.

        Raises:
            CorruptArtifactError: the file is missing or its bytes are not those of the manifest.
        """
        return self.store.fetch(self.ref, self._find(name))

    def read(self, name: str) -> bytes:
        """Return the verified bytes of a data file; a remote one is not cached, so that any number can be read.

        Raises:
            CorruptArtifactError: the file is missing or its bytes are not those of the manifest.
        """
        return self.store.read(self.ref, self._find(name))

    def _find(self, name: str) -> FileEntry:
        entry = self.manifest.files.get(name)
        if entry is None:
            raise CorruptArtifactError(f"{self.address} has no file {name}; it has {', '.join(self.manifest.files)}")
        return entry


class Partial:
    """The unfinished files of a piece of work: written atomically, read by the next attempt, removed at the end."""

    def __init__(self, store: "ArtifactStore", ref: ArtifactRef) -> None:
        self._files = store.files
        self._folder = f"partial/{ref}"

    def names(self) -> set[str]:
        """Return the names of the files that are there."""
        return self._files.list_names(self._folder)

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            CorruptArtifactError: they are not those that were written; the file is removed, so that it is made again.
            FileNotFoundError: there is no such file.
        """
        stored = self._files.read(f"{self._folder}/{name}")
        digest, data = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            self.remove(name)
            raise CorruptArtifactError(f"{self._files.root}/{self._folder}/{name} was damaged; it is removed")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file behind its sha256; a reader sees all of it or none."""
        self._files.write(f"{self._folder}/{name}", hashlib.sha256(data).digest() + data)

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is fine."""
        self._files.remove(f"{self._folder}/{name}")

    def clear(self) -> None:
        """Remove everything."""
        self._files.remove(self._folder)


class ArtifactStore:
    """Artifacts below one root, a local folder or any fsspec URL.

    Args:
        root: a folder or URL such as `s3://bucket/prefix`.
        cache: local folder for verified copies of remote files.
        options: fsspec's storage options.
    """

    def __init__(self, root: str, cache: Path | None = None, options: Mapping[str, Any] | None = None) -> None:
        self.files = Storage(root, options)
        self.root = self.files.root
        self._cache = cache or default_cache()

    @classmethod
    def from_environment(cls) -> "ArtifactStore":
        """Open the store at `MZSANE_ROOT` (default `.mzsane/store`), S3 at `MZSANE_S3_ENDPOINT` when that is set."""
        root = os.environ.get("MZSANE_ROOT") or ".mzsane/store"
        cache = os.environ.get("MZSANE_CACHE")
        return cls(root, cache=Path(cache) if cache else None, options=find_options(root))

    def address(self, ref: ArtifactRef) -> str:
        """Return the URL of an artifact's folder, published or not."""
        return f"{self.root}/{ref}"

    def check(self) -> None:
        """Write and remove a small file, so that a store that cannot work is noticed before the work.

        Raises:
            StoreError: it cannot be reached, refuses, or is full.
        """
        probe = f"partial/probe-{uuid.uuid4().hex}"
        self.files.write(probe, b"mzsane")
        self.files.remove(probe)

    def exists(self, ref: ArtifactRef) -> bool:
        """Tell whether an artifact is published."""
        return self.files.exists(f"{ref}/{MANIFEST}")

    def find(self, ref: ArtifactRef) -> Artifact | None:
        """Open an artifact, or return None when it is not published."""
        return self.open(ref) if self.exists(ref) else None

    def open(self, ref: ArtifactRef) -> Artifact:
        """Open a published artifact.

        Raises:
            CorruptArtifactError: there is no manifest, or it is not one of this artifact.
            NewerArtifactError: a newer mzsane wrote it.
        """
        try:
            manifest = read_manifest(self.files.read(f"{ref}/{MANIFEST}"), self.address(ref))
        except FileNotFoundError:
            raise CorruptArtifactError(f"{self.address(ref)} is not there (no {MANIFEST})") from None
        if (manifest.kind, manifest.fingerprint) != (ref.kind, ref.fingerprint):
            raise CorruptArtifactError(f"{self.address(ref)}/{MANIFEST} belongs to another artifact; {REMEDY}")
        return Artifact(self, manifest)

    def partial(self, work: Work) -> Partial:
        """Return the place for the unfinished files of a piece of work."""
        return Partial(self, work.ref)

    def upload(self, work: Work, name: str, content: Path | bytes) -> FileEntry:
        """Put a data file where it belongs before the artifact is published; nobody sees it until then.

        For artifacts too large to be held at once: keep the entry in the work's partial files, and publish it.
        """
        data = content if isinstance(content, bytes) else content.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        stem, dot, suffix = name.partition(".")
        entry = FileEntry(path=f"{stem}-{digest[:12]}{dot}{suffix}", bytes=len(data), sha256=digest)
        self.files.write(f"{work.ref}/{entry.path}", data)
        return entry

    def publish(self, work: Work, files: Mapping[str, Path | bytes | FileEntry], counts: Mapping[str, Any]) -> Artifact:
        """Publish an artifact: data files first, the manifest last, then the unfinished files go.

        Args:
            work: what was done.
            files: local files, bytes, or entries of files uploaded before, by name, such as `index.parquet`.
            counts: small numbers for people: models, tokens, steps.

        Returns:
            The published artifact: another writer's, when that was first.
        """
        entries = {
            name: content if isinstance(content, FileEntry) else self.upload(work, name, content)
            for name, content in files.items()
        }
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            kind=work.kind,
            fingerprint=work.ref.fingerprint,
            version=work.version,
            config=dict(work.config),
            inputs={role: str(ref) for role, ref in work.inputs.items()},
            seed=work.seed,
            counts=dict(counts),
            libraries=_library_versions(),
            files=entries,
        )
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True).encode()
        if not self.files.create(f"{work.ref}/{MANIFEST}", text):
            winner = {entry.path for entry in self.open(work.ref).manifest.files.values()}
            for entry in entries.values():
                if entry.path not in winner:
                    self.files.remove(f"{work.ref}/{entry.path}")
        self.partial(work).clear()
        return self.open(work.ref)

    def fetch(self, ref: ArtifactRef, entry: FileEntry) -> Path:
        """Return a verified local path of an artifact's file (see `Artifact.path`)."""
        name = f"{ref}/{entry.path}"
        if path := self.files.local_path(name):
            self._verify(path, entry, name)
            return path
        cached = self._cache / f"{entry.sha256}{PurePosixPath(entry.path).suffix}"
        if not (cached.exists() and _hash_file(cached) == entry.sha256):
            self._download(name, entry, cached)
        return cached

    def read(self, ref: ArtifactRef, entry: FileEntry) -> bytes:
        """Return the verified bytes of an artifact's file (see `Artifact.read`)."""
        name = f"{ref}/{entry.path}"
        try:
            data = self.files.read(name)
        except FileNotFoundError:
            raise CorruptArtifactError(f"{self.root}/{name} is missing; {REMEDY}") from None
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise self._changed(name, len(data), entry)
        return data

    def _download(self, name: str, entry: FileEntry, cached: Path) -> None:
        fresh = cached.with_name(f"{cached.name}.{uuid.uuid4().hex}")
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            self.files.download(name, fresh)
            self._verify(fresh, entry, name)
            fresh.replace(cached)
        except FileNotFoundError:
            raise CorruptArtifactError(f"{self.root}/{name} is missing; {REMEDY}") from None
        finally:
            fresh.unlink(missing_ok=True)

    def _verify(self, path: Path, entry: FileEntry, name: str) -> None:
        if not path.exists():
            raise CorruptArtifactError(f"{self.root}/{name} is missing; {REMEDY}")
        size = path.stat().st_size
        if size != entry.bytes or _hash_file(path) != entry.sha256:
            raise self._changed(name, size, entry)

    def _changed(self, name: str, size: int, entry: FileEntry) -> CorruptArtifactError:
        return CorruptArtifactError(
            f"{self.root}/{name} was changed after it was published: its sha256 is not that of the manifest "
            f"({size} bytes, {entry.bytes} promised); {REMEDY}"
        )


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
