"""Looking into a store: which artifacts there are, what an address or the begin of one means, what came from what."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mzsane.errors import ConfigError, StoreError
from mzsane.store.artifacts import Artifact, ArtifactRef, ArtifactStore

KINDS = ("archive", "zoo", "tokens", "backbone", "probes", "baselines", "samples", "scores", "comparison")
_READERS = 16  # manifests that are read at a time
_SHOWN = 5  # candidates in an error text
_MISSING = "-"


@dataclass(frozen=True)
class Ancestor:
    """An artifact among those that another came from.

    Attributes:
        ref: which.
        role: what it was read as.
        depth: how many steps away.
        artifact: it, or None where it is no longer in the store.
    """

    ref: ArtifactRef
    role: str
    depth: int
    artifact: Artifact | None


def list_refs(store: ArtifactStore, kind: str | None = None) -> list[ArtifactRef]:
    """Return the names of the published artifacts, of one kind or of all.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"no kind of artifact is called {kind!r}: give one of {', '.join(KINDS)}")
    refs = [
        ArtifactRef(kind=each, fingerprint=name)
        for each in (KINDS if kind is None else (kind,))
        for name in sorted(store.files.list_names(each))
    ]
    with ThreadPoolExecutor(_READERS) as threads:
        return [ref for ref, there in zip(refs, threads.map(store.exists, refs), strict=True) if there]


def open_all(store: ArtifactStore, refs: list[ArtifactRef]) -> Iterator[tuple[ArtifactRef, Artifact | StoreError]]:
    """Yield artifacts, or why one cannot be opened."""

    def open_one(ref: ArtifactRef) -> Artifact | StoreError:
        try:
            return store.open(ref)
        except StoreError as error:
            return error

    with ThreadPoolExecutor(_READERS) as threads:
        yield from zip(refs, threads.map(open_one, refs), strict=True)


def find_artifact(store: ArtifactStore, address: str) -> Artifact:
    """Open an artifact by its address, by `kind/fingerprint`, or by the begin of a fingerprint that only one has.

    Raises:
        ConfigError: there is none, or more than one.
        CorruptArtifactError: it has no sound manifest.
    """
    text = address.strip().rstrip("/").removeprefix(f"{store.root}/")
    parts = text.split("/")
    kind, start = (parts[-2], parts[-1]) if len(parts) > 1 else (None, parts[-1])
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"{address} is no address of an artifact: give kind/fingerprint, of {', '.join(KINDS)}")
    fitting = [
        ArtifactRef(kind=each, fingerprint=name)
        for each in (KINDS if kind is None else (kind,))
        for name in sorted(store.files.list_names(each))
        if start and name.startswith(start)
    ]
    found = [ref for ref in fitting if store.exists(ref)]
    if not found:
        raise ConfigError(f"no artifact in {store.root} begins with {text!r}: `mzsane ls` lists what is there")
    if len(found) > 1:
        shown = ", ".join(shorten(ref) for ref in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ConfigError(f"{len(found)} artifacts begin with {text!r} ({shown}{more}): give more of the name")
    return store.open(found[0])


def shorten(ref: ArtifactRef) -> str:
    """Return kind and the begin of the fingerprint, as lists show it."""
    return f"{ref.kind}/{ref.fingerprint[:12]}"


def trace_lineage(artifact: Artifact) -> list[Ancestor]:
    """Return an artifact and all that it came from, each after what read it; one that comes again is not followed."""
    found: list[Ancestor] = []
    seen: set[ArtifactRef] = set()

    def visit(ref: ArtifactRef, role: str, depth: int) -> None:
        there = artifact.store.find(ref)
        found.append(Ancestor(ref, role, depth, there))
        if there is None or ref in seen:
            return
        seen.add(ref)
        for name, text in there.manifest.inputs.items():
            visit(ArtifactRef.parse(text), name, depth + 1)

    visit(artifact.ref, "", 0)
    return found


def compare_settings(one: Artifact, other: Artifact) -> list[tuple[str, str, str]]:
    """Return what differs between two artifacts in version, settings and inputs: name and both values, as text."""
    sides = [
        {"version": each.manifest.version, **_flatten(each.manifest.config), **_flatten(each.manifest.inputs, "input ")}
        for each in (one, other)
    ]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    rows = [(name, *(str(side.get(name, _MISSING)) for side in sides)) for name in names]
    return [(name, ours, theirs) for name, ours, theirs in rows if ours != theirs]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level, with dotted names; items of lists are numbered."""
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        items = {str(number): item for number, item in enumerate(value)}.items()
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        name = f"{prefix}{key}" if prefix.endswith(" ") or not prefix else f"{prefix}.{key}"
        flat |= _flatten(item, name)
    return flat
