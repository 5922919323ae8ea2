"""The tables of the page: what can be sorted and filtered by a reader."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from mzsane.probing.picture import name_features, name_property
from mzsane.report.figures.vega import to_columns
from mzsane.report.provenance import merge_artifacts
from mzsane.report.words import PLACES, WORDS

MISSING = "–"
_FIRST = (
    *("composition", "seed", "target", "method", "sees", "finetune_epochs"),
    *("accuracy_mean", "accuracy_interval", "n", "novelty_mean", "sampling_novelty_mean"),
)
_CHOOSE = ("composition", "target", "method", "sees", "finetune_epochs")


@dataclass(frozen=True)
class Column:
    """A column: its heading, what it means, if it holds numbers or long text, if a list of its values is offered."""

    name: str
    meaning: str = ""
    number: bool = False
    choose: bool = False
    wide: bool = False

    @property
    def css(self) -> str:
        """The class of the column's cells."""
        return "number" if self.number else "wide" if self.wide else ""


@dataclass(frozen=True)
class Table:
    """A table that is written into the page, cells as text."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


def format_value(value: Any, digits: int = 3) -> str:
    """Return a value as text: decimals or two digits, `n/a` where it is not finite, a dash where there is none."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "n/a"
        return f"{value:.{digits}f}" if value == 0 or abs(value) >= 10**-digits else f"{value:.2g}"
    return str(value)


def list_measurements(rows: pl.DataFrame) -> tuple[dict[str, Any], dict[str, str]]:
    """Return every measurement for the page's script, and what is the same in all rows.

    Args:
        rows: A row a measurement, with the columns of `cells.ROW_SCHEMA`.

    Returns:
        `columns` (as of `Column`) and `values` by column; and texts by the heading of a column with one value.
    """
    fixed = {name: format_value(rows[name][0]) for name in rows.columns if rows[name].n_unique() == 1 and len(rows) > 1}
    order = dict.fromkeys((*_FIRST, *rows.columns))
    shown = rows.select(name for name in order if name not in ("arm", *fixed))
    columns = [
        vars(Column(_name(name), _explain(name), shown[name].dtype.is_numeric(), name in _CHOOSE))
        for name in shown.columns
    ]
    constants = {_name(name): text for name, text in fixed.items() if text not in (MISSING, "n/a")}
    return {"columns": columns, "values": list(to_columns(shown).values())}, constants


def list_effects(effects: pl.DataFrame) -> Table:
    """Return every effect: estimate, interval and why there is none.

    Args:
        effects: With the columns of `effects.EFFECT_SCHEMA`.
    """
    heads = [Column("change"), Column("kind", WORDS["total effect"], choose=True), Column("target", choose=True)]
    heads += [Column("epochs", number=True)]
    heads += [Column(name, WORDS["points"], number=True) for name in ("points", "from", "to")]
    heads += [Column("units", WORDS["interval"], number=True), Column("interval over"), Column("why not", wide=True)]
    body = []
    for row in effects.iter_rows(named=True):
        points = [
            format_value(None if row[name] is None else 100 * row[name], 2) for name in ("estimate", "low", "high")
        ]
        place = PLACES[row["in_distribution"]]
        words = [row["label"], row["kind"], place, str(row["epochs"]), *points]
        body.append([*words, format_value(row["units"]), row["over"] or MISSING, row["reason"] or MISSING])
    return Table("table-effects", "Effects", heads, body)


def list_convergence(convergence: pl.DataFrame) -> Table:
    """Return how far each backbone has converged.

    Args:
        convergence: A row an arm.
    """
    heads = [
        Column("composition", choose=True),
        Column("seed", number=True),
        Column("steps", number=True),
        Column("passes", WORDS["passes"], number=True),
        Column("validation R²", number=True),
        Column("gain in the last quarter", WORDS["gain in the last quarter"], number=True),
        Column("points lost by reconstruction", WORDS["reconstruction loss"], number=True),
        Column("state", choose=True),
    ]
    body = []
    for row in convergence.iter_rows(named=True):
        lost = row["reconstruction_loss_of_accuracy"]
        numbers = [format_value(row["passes"], 1), format_value(row["val_r2"]), format_value(row["gain_last_quarter"])]
        numbers.append(format_value(None if lost is None else 100 * lost, 1))
        names = [row["composition"], str(row["seed"]), format_value(row["steps"])]
        body.append([*names, *numbers, "failed" if row["failed"] else "trained"])
    return Table("table-convergence", "Backbones", heads, body)


def list_probes(probes: pl.DataFrame) -> tuple[Table, list[str]]:
    """Return the scores of probes, means over arms, and what was not probed with the reason.

    Args:
        probes: Of all arms, with the columns of `probing.stage.PROBE_SCHEMA`.
    """
    heads = [Column(name, choose=True) for name in ("zoo", "property", "features", "metric")]
    heads += [Column("sees", WORDS["sees"]), Column("fitted on")]
    heads += [Column(name, number=True) for name in ("score", "from", "to", "guessing", "models")]
    if probes.is_empty():
        return Table("table-probes", "Probes of latents", heads, []), []
    keys = ("zoo", "in_distribution", "property", "features", "metric", "sees", "fitted_on")
    scored = probes.filter(pl.col("value").is_finite()).with_columns(fitted_on=pl.col("fitted_on").list.join(", "))
    means = scored.group_by(keys, maintain_order=True).agg(
        pl.col("value", "low", "high", "chance").mean(), pl.col("models").max()
    )
    body = []
    for row in means.iter_rows(named=True):
        zoo = row["zoo"] if row["in_distribution"] else f"{row['zoo']} (out)"
        words = [zoo, name_property(row["property"]), name_features(row["features"]), row["metric"]]
        numbers = [format_value(row[name], 2) for name in ("value", "low", "high", "chance")]
        body.append([*words, row["sees"], row["fitted_on"], *numbers, str(row["models"])])
    left_out = (
        probes.filter(pl.col("note").is_not_null())
        .select("zoo", "property", "features", "note")
        .unique(maintain_order=True)
    )
    notes = [
        f"{zoo}, {name_property(name)}{f' from {name_features(features)}' if features else ''}: {note}"
        for zoo, name, features, note in left_out.rows()
    ]
    return Table("table-probes", "Probes of latents", heads, body), notes


def list_provenance(provenance: Sequence[Mapping[str, Any]]) -> Table:
    """Return every artifact once, with what it reads, who uses it and where it is.

    Args:
        provenance: Entries with arm, stage, name, fingerprint, address, reads.
    """
    artifacts = merge_artifacts(provenance)
    names = {artifact.fingerprint: f"{artifact.stage} {artifact.name}" for artifact in artifacts}
    heads = [
        Column("stage", choose=True),
        Column("name"),
        Column("reads", wide=True),
        Column("arms"),
        Column("address"),
    ]
    body = []
    for artifact in artifacts:
        reads = ", ".join(names.get(read, f"{read[:8]} (elsewhere)") for read in artifact.reads)
        arms = artifact.arms[0] if len(artifact.arms) == 1 else f"{len(artifact.arms)} arms"
        body.append([artifact.stage, artifact.name, reads or MISSING, arms, artifact.address])
    return Table("table-provenance", "Artifacts", heads, body)


def _name(name: str) -> str:
    return name.removesuffix("_mean").replace("_", " ")


def _explain(name: str) -> str:
    return WORDS.get(_name(name), "")
