"""What came from where: the artifacts of an ablation as a diagram, from zoos on the left to scores on the right."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from mzsane.appearance import INK, MUTED, create_figure, create_message, quote

STAGES = ("zoo", "tokens", "backbone", "samples", "scores", "probes")
# Not the colours of compositions, which mean something else.
COLORS = ("#8a6d3b", "#66788a", "#2f5573", "#75507b", "#4e6e4e", "#7a4f4f")
BOX_WIDTH, BOX_HEIGHT = 0.74, 0.68


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


def place_artifacts(artifacts: Sequence[Artifact]) -> dict[str, tuple[float, float]]:
    """Place artifacts in columns by stage, near the middle of what they read.

    Args:
        artifacts: As of `merge_artifacts`.

    Returns:
        The middle of each artifact's box by fingerprint: x in columns, y in boxes downwards from 0.
    """
    stages = list_stages(artifacts)
    tallest = max(sum(artifact.stage == stage for artifact in artifacts) for stage in stages)
    places: dict[str, tuple[float, float]] = {}
    for x, stage in enumerate(stages):
        column = [artifact for artifact in artifacts if artifact.stage == stage]
        heights = {}
        for artifact in column:
            inputs = [places[read][1] for read in artifact.reads if read in places]
            heights[artifact.fingerprint] = sum(inputs) / len(inputs) if inputs else 0.0
        column.sort(key=lambda artifact: heights[artifact.fingerprint])
        gap = tallest / len(column)
        for i, artifact in enumerate(column):
            places[artifact.fingerprint] = (float(x), (i + 0.5) * gap)
    return places


def list_implied(artifacts: Sequence[Artifact]) -> set[tuple[str, str]]:
    """Return the (input, reader) pairs where the reader also has the input by way of another of its inputs."""
    reads = {artifact.fingerprint: artifact.reads for artifact in artifacts}
    sources: dict[str, set[str]] = {}

    def find_sources(fingerprint: str) -> set[str]:
        if fingerprint not in sources:
            sources[fingerprint] = set()
            direct = reads.get(fingerprint, ())
            sources[fingerprint] = set(direct).union(*map(find_sources, direct))
        return sources[fingerprint]

    return {
        (read, reader)
        for reader, direct in reads.items()
        for read in direct
        if any(read in find_sources(other) for other in direct if other != read)
    }


def draw_artifact(axes: Axes, artifact: Artifact, place: tuple[float, float], color: str) -> None:
    """Draw an artifact's box, with its name, the head of its fingerprint and how many arms share it."""
    x, y = place
    axes.add_patch(
        FancyBboxPatch(
            (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2),
            BOX_WIDTH,
            BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor="white",
            edgecolor=color,
            linewidth=1.2 if len(artifact.arms) == 1 else 2.4,
            zorder=3,
        )
    )
    shared = f" · {len(artifact.arms)} arms" if len(artifact.arms) > 1 else ""
    centred: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 4}
    axes.text(x, y - 0.14, quote(artifact.name, 22), fontsize=9.5, color=INK, **centred)
    axes.text(x, y + 0.17, f"{artifact.fingerprint[:8]}{shared}", fontsize=8.5, color=MUTED, **centred)


def draw_read(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, faint: bool) -> None:
    """Draw the line from an artifact to one that reads it: to its left side, or around to its right one."""
    x0, x1 = start[0] + BOX_WIDTH / 2, end[0] - BOX_WIDTH / 2
    bend = (x0 + x1) / 2
    if x1 <= x0:
        x1 = end[0] + BOX_WIDTH / 2
        bend = max(x0, x1) + 0.15
    curve = Path([(x0, start[1]), (bend, start[1]), (bend, end[1]), (x1, end[1])], [Path.MOVETO, *[Path.CURVE4] * 3])
    width, alpha, zorder = (0.8, 0.28, 1) if faint else (1.5, 0.75, 2)
    axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=color, linewidth=width, alpha=alpha, zorder=zorder))


def plot_provenance(provenance: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot what came from where: stages as columns, artifacts as boxes, a line from each input to its reader.

    Args:
        provenance: Entries with arm, stage, name, fingerprint, address, reads; a shared artifact has one for each arm
            and is drawn once.
    """
    artifacts = merge_artifacts(provenance)
    if not artifacts:
        return create_message("No provenance.")
    stages = list_stages(artifacts)
    places = place_artifacts(artifacts)
    colors = {stage: COLORS[i % len(COLORS)] for i, stage in enumerate(stages)}
    tallest = max(sum(artifact.stage == stage for artifact in artifacts) for stage in stages)
    implied = list_implied(artifacts)
    unknown = {read for artifact in artifacts for read in artifact.reads if read not in places}

    note = "A line goes from an artifact to what was made of it, in the colour of the stage it leaves. "
    note += "Faint: read as well, besides by way of others. Thick frame: shared by several arms."
    if unknown:
        note += f" Not shown: {len(unknown)} input{'s' * (len(unknown) > 1)} from elsewhere."
    figure = create_figure(2.3 * max(3, len(stages)), 1.3 + 0.56 * (tallest + 1), "What came from where", note)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(-0.45, max(3, len(stages)) - 0.55)
    axes.set_ylim(tallest, -0.7)
    for x, stage in enumerate(stages):
        axes.text(x, -0.35, quote(stage), ha="center", fontsize=12, fontweight="bold", color=colors[stage])
    for artifact in artifacts:
        draw_artifact(axes, artifact, places[artifact.fingerprint], colors[artifact.stage])
        for read in artifact.reads:
            if read in places:
                start, end = places[read], places[artifact.fingerprint]
                faint = (read, artifact.fingerprint) in implied
                draw_read(axes, start, end, colors[stages[round(start[0])]], faint)
    return figure
