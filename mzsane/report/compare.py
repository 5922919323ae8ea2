"""Compare the arms of an ablation: the last stage, from scores to a table, figures and a page.

The COMPARISON artifact holds as parquet `comparison` (also JSON; a row a measurement, see `cells.ROW_SCHEMA`), `models`
(a row a single model: its names and its score), `duels` and `duel_summary` (samples against every baseline), `leaders`
(the best compositions), `effects`, `convergence` (how far each backbone was trained), `curves` (training curves),
`shares` (of models that are novel and as accurate as the zoo), `latents` (a map of held-out checkpoints), `probes`
(what latents tell); `answers.json`, what the ablation asked and found; `report.html`; and figures as PNG, those that
have something to say.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import polars as pl

from mzsane.appearance import assign_styles
from mzsane.config import AblationConfig, ExecutionConfig
from mzsane.device import find_device
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.report.analysis import analyse
from mzsane.report.answers import Answer
from mzsane.report.figures.pictures import plot_pictures
from mzsane.report.findings import Findings
from mzsane.report.gather import (
    ArmParts,
    choose_mapped,
    count_passes,
    gather_curves,
    gather_latents,
    gather_probes,
    gather_rows,
    gather_scores,
    gather_shares,
    trace_provenance,
)
from mzsane.report.page.page import render_report
from mzsane.report.run_facts import describe_run
from mzsane.report.statistics.convergence import measure_convergence
from mzsane.report.statistics.differences import find_differences
from mzsane.steady import steady
from mzsane.store.artifacts import Artifact, ArtifactStore, Work
from mzsane.store.serialisation import to_parquet

VERSION = 8


def plan_comparison(config: AblationConfig, arms: Sequence[ArmParts], missing: Sequence[str] = ()) -> Work:
    """Name the work of comparing arms. Names are part of it, since they are in the table and the page.

    Args:
        config: the ablation.
        arms: those that are compared.
        missing: the names of its other arms, which failed.
    """
    inputs = {}
    for arm in arms:
        inputs[f"{arm.name}/backbone"] = arm.backbone
        inputs[f"{arm.name}/probes"] = arm.probes
        inputs |= {f"{arm.name}/scores/{target}": ref for target, ref in arm.scores.items()}
        inputs |= {f"{arm.name}/baselines/{target}": ref for target, ref in arm.baselines.items()}
    gaps = {"missing": list(missing)} if missing else {}
    return Work("comparison", VERSION, {"ablation": config.model_dump(mode="json"), **gaps}, inputs)


@steady
def compare(
    config: AblationConfig,
    arms: Sequence[ArmParts],
    store: ArtifactStore,
    sink: MetricSink = NO_SINK,
    started: float | None = None,
    missing: Sequence[str] = (),
    execution: ExecutionConfig | None = None,
) -> Artifact:
    """Gather all scores, compare them, draw the figures, and write the page.

    Args:
        config: the ablation.
        arms: its arms whose artifacts are all there.
        store: where they are.
        sink: told of progress.
        started: when the ablation began, in seconds since the epoch, if that is known: the page says how long it took.
        missing: the names of its other arms: the first sentence says that they are missing.
        execution: the device that backbones compute on.
    """
    work = plan_comparison(config, arms, missing)
    if found := store.find(work.ref):
        return found
    device = find_device(execution)
    scores = [gather_scores(config, arm, store) for arm in arms]
    rows = pl.concat([gather_rows(config, arm, found, store) for arm, found in zip(arms, scores, strict=True)])
    models = pl.concat(scores).filter(ensemble=1)
    curves = pl.concat([gather_curves(arm, store) for arm in arms])
    convergence = measure_convergence(curves, {arm.name: count_passes(config, arm, store) for arm in arms})
    shares = pl.concat([gather_shares(config, arm, models) for arm in arms])
    latents = pl.concat([gather_latents(config, arm, store, device) for arm in choose_mapped(config, arms)])
    probes = pl.concat([gather_probes(config, arm, store) for arm in arms])
    provenance = trace_provenance(config, arms, store)
    differences = find_differences({arm.name: [arm.backbone, *arm.scores.values()] for arm in arms}, store)
    sink.progress(1, 4, "parts: measurements gathered")
    found_out = analyse(config.questions, rows, models, convergence, missing)
    sink.progress(2, 4, "parts: effects and duels computed")
    looks = assign_styles([composition.name for composition in config.compositions])
    pictures = plot_pictures(rows, found_out.effects, shares, latents, curves, probes, looks)
    sink.progress(3, 4, "parts: figures drawn")
    page = render_report(
        config.model_dump(mode="json"),
        rows,
        answers=found_out.answers,
        duels=found_out.duels,
        summary=found_out.duel_summary,
        leaders=found_out.leaders,
        effects=found_out.effects,
        convergence=convergence,
        curves=curves,
        shares=shares,
        latents=latents,
        probes=probes,
        provenance=provenance,
        facts=replace(describe_run(started), differences=tuple(differences)),
        missing=missing,
    )
    answers = [answer.to_json() for answer in found_out.answers]
    frames = {
        "comparison": rows,
        "models": models,
        "duels": found_out.duels,
        "duel_summary": found_out.duel_summary,
        "leaders": found_out.leaders,
        "effects": found_out.effects,
        "convergence": convergence,
        "curves": curves,
        "shares": shares,
        "latents": latents,
        "probes": probes,
    }
    files = {
        **{f"{name}.parquet": to_parquet(frame) for name, frame in frames.items()},
        "comparison.json": json.dumps(_to_json_rows(rows), indent=1).encode(),
        "answers.json": json.dumps({"answers": answers, "findings": asdict(found_out.findings)}, indent=1).encode(),
        "report.html": page.encode(),
        **pictures,
    }
    sink.progress(4, 4, "parts: page written")
    return store.publish(
        work,
        files,
        counts={
            "arms": len(arms),
            "measurements": len(rows),
            **({"missing": list(missing)} if missing else {}),
            **({"differences": differences} if differences else {}),
        },
    )


def read_answers(comparison: Artifact) -> tuple[list[Answer], Findings]:
    """Read what an ablation asked and found from its COMPARISON artifact."""
    found = json.loads(comparison.path("answers.json").read_bytes())
    return [Answer.from_json(answer) for answer in found["answers"]], Findings(**found["findings"])


def _to_json_rows(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in rows.iter_rows(named=True)
    ]
