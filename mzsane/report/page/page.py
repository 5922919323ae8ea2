"""The report of an ablation: one HTML page that answers first, holds everything and loads nothing.

The page's own scripts are named by their hashes in its security policy, so that nothing else can run, whatever a name
in the config holds. Figures are drawn by Vega with its interpreter, which needs no `eval`. Without scripts the answers,
the accuracies and the duels can be read; figures and the table of measurements need them.
"""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jinja2
import polars as pl
import vl_convert
from markupsafe import Markup, escape

from mzsane.report.answers import DEFAULT_QUESTION, Answer, describe_gaps
from mzsane.report.cells import check_rows
from mzsane.report.figures.accuracy import chart_cost, chart_methods, chart_novelty
from mzsane.report.figures.backbone import chart_convergence, chart_curves, chart_shares
from mzsane.report.figures.change import chart_effects, chart_finetuning
from mzsane.report.figures.grids import AccuracyView, list_compositions, list_duels, list_views
from mzsane.report.figures.latents import chart_latents, chart_probes
from mzsane.report.figures.vega import FONT_SIZE, list_data
from mzsane.report.page.tables import list_convergence, list_effects, list_measurements, list_probes, list_provenance
from mzsane.report.statistics.pooling import pool_seeds
from mzsane.report.words import METHOD_MEANINGS, SEES_MEANINGS, WORDS

EMPTY = pl.DataFrame()


@dataclass(frozen=True)
class Facts:
    """What is known of the run that made the report.

    Attributes:
        date: The day, `2026-12-01`.
        commit: Of the code; None if it is not known.
        machine: In words.
        minutes: That the ablation took; None if it is not known.
        differences: In what of how they were computed arms differ.
    """

    date: str = ""
    commit: str | None = None
    machine: str = ""
    minutes: float | None = None
    differences: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The facts for people, those that are known."""
        found = [self.date, f"commit {self.commit[:10]}" if self.commit else "", self.machine]
        found.append("" if self.minutes is None else f"{self.minutes:.1f} minutes")
        return [text for text in (*found, *self.differences) if text]


def render_report(
    config: Mapping[str, Any],
    rows: pl.DataFrame,
    *,
    answers: Sequence[Answer] = (),
    duels: pl.DataFrame = EMPTY,
    summary: pl.DataFrame = EMPTY,
    leaders: pl.DataFrame = EMPTY,
    effects: pl.DataFrame = EMPTY,
    convergence: pl.DataFrame = EMPTY,
    curves: pl.DataFrame = EMPTY,
    shares: pl.DataFrame = EMPTY,
    latents: pl.DataFrame = EMPTY,
    probes: pl.DataFrame = EMPTY,
    provenance: Sequence[Mapping[str, Any]] = (),
    facts: Facts = Facts(),
    missing: Sequence[str] = (),
) -> str:
    """Render an ablation as one HTML page. Any frame may be empty; what has nothing to say is left out.

    Args:
        config: The ablation's whole config, JSON-like; its `name` is the page's.
        rows: One measurement a row, with the columns of `cells.ROW_SCHEMA`.
        answers: To the preset's questions; the first question is the page's title, its answer the first sentence.
        duels: `duels.DUEL_SCHEMA`.
        summary: `duel_summary.SUMMARY_SCHEMA`: the duels pooled by opponent.
        leaders: `leaders.LEADER_SCHEMA`: the best compositions, marked where a test tells them from the next.
        effects: `effects.EFFECT_SCHEMA`.
        convergence: `convergence.CONVERGENCE_SCHEMA`.
        curves: Training curves in long form: arm, composition, seed, step, metric, value.
        shares: `shares.SHARE_SCHEMA`.
        latents: `latents.LATENT_SCHEMA`.
        probes: `probing.stage.PROBE_SCHEMA` of all arms.
        provenance: Where everything came from: arm, stage, name, fingerprint, address, reads.
        facts: When and where it was made.
        missing: Arms that failed before they were scored.

    Returns:
        The page.

    Raises:
        ConfigError: A column of `rows` is missing.
    """
    rows = check_rows(rows)
    question = answers[0].question if answers else DEFAULT_QUESTION
    # A missing arm or a failed backbone stands before every answer; the page says it once, above them.
    failure = describe_gaps(missing, convergence)
    said = [replace(answer, sentence=answer.sentence.removeprefix(failure).strip()) for answer in answers]
    cells = pool_seeds(rows)
    views = list_views(cells, leaders)
    figures = {
        "novelty": chart_novelty(cells),
        "effects": chart_effects(effects),
        "cost": chart_cost(cells),
        "finetuning": chart_finetuning(cells),
        "methods": chart_methods(cells),
        "shares": chart_shares(shares),
        "convergence": chart_convergence(convergence),
        "curves": chart_curves(curves),
        "probes": chart_probes(probes),
        "latents": chart_latents(latents),
    }
    measurements, constants = list_measurements(rows)
    environment = _open_environment()
    payload = {
        "panels": list_data(figure for figure in figures.values() if figure is not None),
        "views": _render_views(environment, views),
        "measurements": measurements,
    }
    scripts = [read_bundle(), environment.get_template("page.js.j2").render(font_size=FONT_SIZE)]
    probe_table, not_probed = list_probes(probes)
    tables = [list_effects(effects), list_convergence(convergence), probe_table]
    return environment.get_template("page.html.j2").render(
        name=str(config.get("name", "")),
        question=question,
        failure=failure,
        first=[answer for answer in said if answer.question == question],
        others=[answer for answer in said if answer.question != question],
        facts=facts.texts,
        counts=count_things(rows),
        targets=list_targets(cells),
        views=views,
        marks=list_marks(cells),
        starred=any(cell.best for view in views for _, row in view.rows for cell in row if cell),
        duels=list_duels(duels, summary, list_compositions(cells), list_targets(cells)),
        card_width=measure_cards(duels),
        figures=figures,
        tables=[table for table in tables if table.rows],
        not_probed=not_probed,
        measured=bool(len(rows)),
        constants=constants,
        provenance=list_provenance(provenance) if provenance else None,
        config=json.dumps(config, indent=2, default=str, ensure_ascii=False),
        methods={name: meaning for name, meaning in METHOD_MEANINGS.items() if name in rows["method"]},
        sees=SEES_MEANINGS,
        words=WORDS,
        scripts=scripts,
        policy=" ".join(f"'sha256-{_hash_script(script)}'" for script in scripts),
        payload=base64.b64encode(zlib.compress(json.dumps(payload, allow_nan=False).encode(), 9)).decode(),
    )


def count_things(rows: pl.DataFrame) -> str:
    """Return how much was measured, e.g. `4 compositions, 1 seed, 3 targets, 222 measurements`."""
    counts = {name: rows[name].n_unique() for name in ("composition", "seed", "target")}
    counts["measurement"] = rows.height
    return ", ".join(f"{count:,} {name}{'s' * (count != 1)}" for name, count in counts.items())


def list_targets(cells: pl.DataFrame) -> list[str]:
    """Return the targets in the order in which they first appear."""
    return cells["target"].unique(maintain_order=True).to_list()


def list_marks(cells: pl.DataFrame) -> list[float | None]:
    """Return the zero-shot accuracy of trained models by target, in the order of `list_targets`; empty without any."""
    zoo = cells.filter(method="zoo", finetune_epochs=0, ensemble=1).group_by("target").agg(pl.col("accuracy").mean())
    marks = dict(zoo.rows())
    return [marks.get(target) for target in list_targets(cells)] if marks else []


def measure_cards(duels: pl.DataFrame) -> float:
    """Return the width of a card of duels, in which the longest name and all targets have room, in rem."""
    if duels.is_empty():
        return 0.0
    longest = max(len(name) for name in duels["composition"])
    return round(2.5 + 0.38 * longest + 3.7 * duels["target"].n_unique(), 1)


@cache
def read_bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script (0.9 MB)."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _render_views(environment: jinja2.Environment, views: Sequence[AccuracyView]) -> list[str]:
    """Render the rows of each view of the accuracies, as the template renders those of the first."""
    module = environment.get_template("macros.html.j2").module
    return [str(module.accuracy_rows(view)) for view in views]  # type: ignore[attr-defined]


def _hash_script(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _open_environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mzsane.report.page", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _allow_breaks
    return environment


def _allow_breaks(name: str) -> Markup:
    """Escape a name, and let a narrow screen break it after what joins its parts."""
    return Markup(re.sub(r"(?<=[+/_])", "<wbr>", str(escape(name))))
