"""Commands that look into the store at MZSANE_ROOT, and look after it."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from polars import DataFrame

    from mzsane.store.artifacts import Artifact, ArtifactStore

_AGE_HOURS = 24.0


def ls(kind: str | None = None, /) -> int:
    """List the artifacts of the store.

    Parameters
    ----------
    kind
        only those of a kind: zoo, tokens, backbone, probes, baselines, samples, scores, comparison, archive
    """
    from mzsane.store.artifacts import Artifact
    from mzsane.store.browse import list_refs, open_all, shorten

    store = _open_store()
    rows = []
    for ref, found in open_all(store, list_refs(store, kind)):
        if isinstance(found, Artifact):
            made = found.manifest.made
            size = sum(file.bytes for file in found.manifest.files.values())
            name, ended = (made.name or "", made.ended[:16].replace("T", " ")) if made else ("", "")
            seconds = f"{made.seconds:,.1f}" if made and made.seconds is not None else ""
            rows.append((shorten(ref), name, ended, seconds, f"{size / 1e6:,.2f}"))
        else:
            rows.append((shorten(ref), str(found), "", "", ""))
    if not rows:
        print(f"nothing in {store.root} yet")
        return 0
    _print_table(("artifact", "name", "made (UTC)", "seconds", "MB"), sorted(rows, key=lambda row: row[2]))
    return 0


def show(address: str, /) -> int:
    """Show an artifact: what it is, how it was made, from what, its files and settings.

    Parameters
    ----------
    address
        its address, kind/fingerprint, or as much of the fingerprint as tells it from others
    """
    import yaml

    from mzsane.store.artifacts import ArtifactRef
    from mzsane.store.browse import find_artifact, shorten

    artifact = find_artifact(_open_store(), address)
    manifest = artifact.manifest
    print(artifact.address)
    facts = {"kind": manifest.kind, "version": manifest.version, "seed": manifest.seed}
    if manifest.made is not None:
        facts |= {key: value for key, value in manifest.made.model_dump().items() if value is not None}
    inputs = {role: shorten(ArtifactRef.parse(text)) for role, text in manifest.inputs.items()}
    for title, content in (
        ("", facts),
        ("counts", manifest.counts),
        ("inputs", inputs),
        ("libraries", manifest.libraries),
        ("settings", manifest.config),
    ):
        if content:
            print(f"\n{title}:" if title else "")
            print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110).rstrip())
    print()
    files = sorted(manifest.files.items())
    _print_table(("file", "stored as", "bytes"), [(name, file.path, f"{file.bytes:,}") for name, file in files])
    return 0


def diff(one: str, other: str, /) -> int:
    """Show in which settings and inputs two artifacts differ.

    Parameters
    ----------
    one
        an artifact's address, or as much of it as tells it from others
    other
        another one of the same kind
    """
    from mzsane.store.browse import compare_settings

    first, second = _find_pair(one, other)
    if rows := compare_settings(first, second):
        _print_table(("setting", *(each.ref.fingerprint[:12] for each in (first, second))), rows)
    else:
        print("they are of the same settings and inputs")
    return 0


def lineage(address: str, /) -> int:
    """Show all that an artifact came from, as a tree.

    Parameters
    ----------
    address
        its address, or as much of it as tells it from others
    """
    from mzsane.store.browse import find_artifact, shorten, trace_lineage

    for each in trace_lineage(find_artifact(_open_store(), address)):
        made = each.artifact.manifest.made if each.artifact else None
        name = f"  {made.name}" if made and made.name else ""
        role = f"  ({each.role})" if each.role else ""
        print(f"{'  ' * each.depth}{shorten(each.ref)}{name}{role}{'' if each.artifact else '  no longer there'}")
    return 0


def compare(one: str, other: str, /) -> int:
    """Show how the measurements and effects of two comparisons differ.

    Parameters
    ----------
    one
        a comparison's address, or as much of it as tells it from others
    other
        another one
    """
    from mzsane.errors import ConfigError
    from mzsane.report.versus import compare_effects, compare_measurements

    pair = _find_pair(one, other)
    for each in pair:
        if each.ref.kind != "comparison":
            raise ConfigError(f"{each.address} is no comparison: `mzsane ls comparison` lists them")
    names = [each.manifest.config["ablation"]["name"] for each in pair]
    print(f"A {names[0]}, {pair[0].ref.fingerprint[:12]}\nB {names[1]}, {pair[1].ref.fingerprint[:12]}\n")
    effects = compare_effects(*pair)
    if not effects.is_empty():
        _print_table(effects.columns, _format(effects))
        print()
    measured = compare_measurements(*pair)
    if measured.is_empty():
        print("no composition, target and method is in both")
    else:
        _print_table(measured.columns, _format(measured))
    return 0


def gc(*, delete: Annotated[bool, Parameter(negative="")] = False, age: float = _AGE_HOURS) -> int:
    """List what killed runs have left, here and in the store, or remove it.

    Parameters
    ----------
    delete
        remove it; without, nothing is touched
    age
        hours: leave work alone in which something was written since
    """
    from mzsane.store.garbage import collect_garbage

    store = _open_store()
    garbage = collect_garbage(store, delete, age)
    for each in garbage:
        print(f"{each.bytes:>15,}  {each.name}  ({each.reason})")
    total = sum(each.bytes for each in garbage)
    if not garbage:
        print(f"nothing to remove in {store.root}")
    elif delete:
        print(f"{len(garbage)} files, {total:,} bytes removed")
    else:
        print(f"{len(garbage)} files, {total:,} bytes would go: add --delete to remove them")
    return 0


def check(address: str | None = None, /) -> int:
    """Read all files of one artifact, or of all, and compare them with their hashes; exit code 1 if one is damaged.

    Parameters
    ----------
    address
        an artifact's address, or as much of it as tells it from others; all if not given
    """
    from mzsane.errors import StoreError
    from mzsane.store.artifacts import Artifact
    from mzsane.store.browse import find_artifact, list_refs, open_all, shorten

    store = _open_store()
    found = [find_artifact(store, address)] if address else [each for _, each in open_all(store, list_refs(store))]
    damaged = files = size = 0
    for each in found:
        if not isinstance(each, Artifact):
            print(each)
            damaged += 1
            continue
        for name, entry in each.manifest.files.items():
            try:
                each.read(name)
            except StoreError as error:
                print(f"{shorten(each.ref)}: {error}")
                damaged += 1
            files, size = files + 1, size + entry.bytes
    print(
        f"{len(found)} artifacts, {files:,} files, {size:,} bytes: {f'{damaged} damaged' if damaged else 'all sound'}"
    )
    return 1 if damaged else 0


def _open_store() -> "ArtifactStore":
    from mzsane.store.artifacts import ArtifactStore

    return ArtifactStore.from_environment()


def _find_pair(one: str, other: str) -> "tuple[Artifact, Artifact]":
    from mzsane.errors import ConfigError
    from mzsane.store.browse import find_artifact

    store = _open_store()
    first, second = find_artifact(store, one), find_artifact(store, other)
    if first.ref.kind != second.ref.kind:
        raise ConfigError(f"a {first.ref.kind} and a {second.ref.kind} cannot be compared: give two of one kind")
    return first, second


def _format(frame: "DataFrame") -> list[tuple[str, ...]]:
    """Return the rows of a frame as text; differences have a sign."""
    rows = []
    for row in frame.iter_rows():
        shown = []
        for name, value in zip(frame.columns, row, strict=True):
            if isinstance(value, float):
                shown.append(f"{value:+.4f}" if " - " in name else f"{value:.4f}")
            else:
                shown.append("" if value is None else str(value))
        rows.append(tuple(shown))
    return rows


def _print_table(columns: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> None:
    """Print a table of text, as wide as it is: terminals scroll, and pipes cut nothing."""
    widths = [max(len(line[place]) for line in (columns, *rows)) for place in range(len(columns))]
    for line in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
