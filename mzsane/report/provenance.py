"""What came from where: the artifacts of an ablation, each once, by stage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STAGES = ("zoo", "tokens", "backbone", "samples", "scores", "probes")


@dataclass(frozen=True)
class Artifact:
    """An artifact with all arms that use it.

    Attributes:
        stage: The stage that made it.
        name: What to call it.
        fingerprint: Of the work that made it.
        address: Where it is.
        reads: Fingerprints of its inputs.
        arms: The arms that use it.
    """

    stage: str
    name: str
    fingerprint: str
    address: str
    reads: tuple[str, ...]
    arms: tuple[str, ...]


def merge_artifacts(provenance: Sequence[Mapping[str, Any]]) -> list[Artifact]:
    """Return each artifact once, in the order of the stages and then as first seen.

    Args:
        provenance: Entries with arm, stage, name, fingerprint, address, reads; a shared artifact has one for each arm.
    """
    merged: dict[str, Artifact] = {}
    for entry in provenance:
        known = merged.get(entry["fingerprint"])
        merged[entry["fingerprint"]] = Artifact(
            stage=entry["stage"],
            name=entry["name"],
            fingerprint=entry["fingerprint"],
            address=entry["address"],
            reads=tuple(dict.fromkeys([*(known.reads if known else ()), *entry["reads"]])),
            arms=tuple(dict.fromkeys([*(known.arms if known else ()), entry["arm"]])),
        )
    stages = list_stages(merged.values())
    return sorted(merged.values(), key=lambda artifact: stages.index(artifact.stage))


def list_stages(artifacts: Iterable[Artifact]) -> list[str]:
    """Return the stages that the artifacts have, in the order of the pipeline, unknown ones last."""
    found = dict.fromkeys(artifact.stage for artifact in artifacts)
    return sorted(found, key=lambda stage: STAGES.index(stage) if stage in STAGES else len(STAGES))
