"""Whether the arms of a comparison were computed alike: by the same engine, device, precision and threads."""

from collections.abc import Mapping, Sequence

from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from mzsane.store.manifest import Manifest

# What an artifact's manifest says of how it was computed, as far as that changes what is computed.
FACTS = ("engine", "device", "precision", "threads", "processes", "chunk_models")


def find_differences(arms: Mapping[str, Sequence[ArtifactRef]], store: ArtifactStore) -> list[str]:
    """Say in what of how they were computed arms differ, a sentence each; nothing where they do not.

    Args:
        arms: the artifacts of each arm that are its own; what these read (tokens, zoos) is looked at too.
        store: where they are.
    """
    known: dict[tuple[str, str], dict[str, list[str]]] = {}
    for arm, refs in arms.items():
        for manifest in _walk(refs, store):
            for fact in FACTS:
                if fact in manifest.counts:
                    values = known.setdefault((manifest.kind, fact), {})
                    named = values.setdefault(str(manifest.counts[fact]), [])
                    if arm not in named:
                        named.append(arm)
    return [
        f"Not all arms were computed alike: {fact} of {kind} is "
        + " and ".join(f"{value} ({', '.join(names)})" for value, names in sorted(values.items()))
        + ". Last bits, and what is drawn for dropout, differ with it."
        for (kind, fact), values in sorted(known.items())
        if len(values) > 1
    ]


def _walk(refs: Sequence[ArtifactRef], store: ArtifactStore) -> list[Manifest]:
    """Return the manifests of artifacts and of all that they read, as far as it is in the store, each once."""
    found: dict[ArtifactRef, Manifest] = {}
    waiting = list(refs)
    while waiting:
        ref = waiting.pop()
        artifact = None if ref in found else store.find(ref)
        if artifact is not None:
            found[ref] = artifact.manifest
            waiting += [ArtifactRef.parse(text) for text in artifact.manifest.inputs.values()]
    return list(found.values())
