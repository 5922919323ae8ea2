"""Tracking in MLflow, best effort: the science never waits for it and never fails with it.

Everything that is tracked is in the artifacts too, so that what was lost can be sent again (`mzsane ablate
PRESET --resend`). One parent run an ablation, one child run an arm. Points carry timestamps derived from the run's
start and the step, so that a point sent twice is the same point.

Set `MLFLOW_TRACKING_URI` to turn tracking on. A user and password in it are used, and shown nowhere.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import polars as pl

from mzsane.addresses import hide_secrets, show_address, split_user
from mzsane.appearance import plot_png
from mzsane.config import AblationConfig
from mzsane.plan import Arm, ArmPlan, list_arms, plan_zoo_stage, resolve_ablation
from mzsane.report.compare import read_answers
from mzsane.report.figures.plots import plot_curves
from mzsane.report.gather import ArmParts, gather_curves, gather_probes, gather_rows, gather_scores, name_curve
from mzsane.store.artifacts import Artifact, ArtifactStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH = 1000  # MLflow's limit of metrics in one request
_PARENT_TAG = "mlflow.parentRunId"
_NOTE_TAG = "mlflow.note.content"  # what MLflow's page shows as the run's description
_KEY_TAG = "mzsane.key"
_ZOOS = "zoos"  # the experiment of zoos that are made by themselves
_COMPARISON_FILES = (
    "effects.png",
    "heatmap.png",
    "accuracy.png",
    "novelty.png",
    "shares.png",
    "finetuning.png",
    "latents.png",
    "curves.png",
    "probes.png",
    "report.html",
    "comparison.json",
    "answers.json",
)


class Tracker:
    """A client of one MLflow server that gives up, loudly, at the first failure; `address` is its URI for people."""

    def __init__(self, uri: str, logger: Logger) -> None:
        self.uri, self.address, self.logger = uri, show_address(uri), logger
        self.lost = False

    @classmethod
    def from_environment(cls, logger: Logger) -> "Tracker":
        """Return the tracker of `MLFLOW_TRACKING_URI`; without that variable, one that tracks nothing."""
        return cls(os.environ.get("MLFLOW_TRACKING_URI", ""), logger)

    def open_ablation(self, config: AblationConfig, key: str) -> str | None:
        """Return the parent run of an ablation, a new one if there is none; `key` is its comparison's fingerprint."""
        tags = {"mzsane.ablation": config.name, "mzsane.kind": "ablation"}
        return self._attempt(lambda client: _open_run(client, config.name, config.name, key, tags))

    def open_arm(self, config: AblationConfig, arm: Arm, parent: str | None) -> str | None:
        """Return the child run of an arm, a new one if there is none."""
        if parent is None:
            return None
        tags = {"mzsane.ablation": config.name, "mzsane.kind": "arm", _PARENT_TAG: parent}
        return self._attempt(lambda client: _open_run(client, config.name, arm.name, f"{parent}/{arm.name}", tags))

    def open_zoo(self, name: str, key: str) -> str | None:
        """Return the run of a zoo that is made by itself, a new one if there is none; `key` is its fingerprint."""
        return self._attempt(lambda client: _open_run(client, _ZOOS, name, key, {"mzsane.kind": "zoo"}))

    def finish_zoo(self, run: str | None, name: str, zoo: Artifact) -> None:
        """Send a zoo's card and address, and close its run."""
        if run is not None:
            self._attempt(lambda client: (_send_card(client, run, name, zoo), client.set_terminated(run, "FINISHED")))

    def log_points(self, run: str | None, points: list[tuple[str, float, int]]) -> None:
        """Send metric points: key, value, step."""
        if run is not None and points:
            self._attempt(lambda client: _log_points(client, run, points))

    def finish_arm(self, config: AblationConfig, arm: Arm, run: str | None, store: ArtifactStore) -> None:
        """Send what an arm's artifacts hold: parameters, curves, scores, addresses, the figure; close the run."""
        if run is not None:
            self._attempt(lambda client: _send_arm(client, run, config, arm, store))

    def finish_ablation(
        self, config: AblationConfig, run: str | None, comparison: Artifact, store: ArtifactStore
    ) -> None:
        """Send the cards of the zoos, the comparison's figures and page and its address, and close the parent run."""
        if run is not None:
            zoos = {zoo.name: store.open(plan_zoo_stage(zoo).work.ref) for zoo in config.all_zoos}
            self._attempt(lambda client: _send_comparison(client, run, comparison, zoos))

    @contextmanager
    def watch(self, run: str | None) -> Iterator[None]:
        """Mark a run as failed or killed when an error or a signal ends the block; the next attempt opens it again."""
        try:
            yield
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            if run is not None:
                self._attempt(lambda client: client.set_terminated(run, status))
            raise

    def _attempt(self, action: Callable[["MlflowClient"], Any]) -> Any:
        if not self.uri or self.lost:
            return None
        try:
            return action(_make_client(self.uri))
        except Exception as error:
            self.lost = True
            reason = hide_secrets(" ".join(str(error).split()))[:300]
            self.logger.error(
                "TRACKING IS LOST: MLflow at %s failed (%s). The work goes on and its results are safe in the store; "
                "send them with `mzsane ablate PRESET --resend` when MLflow is back.",
                self.address,
                reason,
            )
            return None


def resend(config: AblationConfig, comparison: Artifact, store: ArtifactStore, logger: Logger) -> bool:
    """Send a finished ablation to MLflow from its artifacts; tell whether all of it arrived."""
    tracker = Tracker.from_environment(logger)
    parent = tracker.open_ablation(config, comparison.ref.fingerprint)
    for arm in list_arms(config):
        tracker.finish_arm(config, arm, tracker.open_arm(config, arm, parent), store)
    tracker.finish_ablation(config, parent, comparison, store)
    return parent is not None and not tracker.lost


def name_points(arm: ArmParts, values: Mapping[str, float], step: int) -> list[tuple[str, float, int]]:
    """Return pre-training metrics as points, named as `_send_arm` names them."""
    return [(f"pretrain/{name_curve(arm, key)}", value, step) for key, value in values.items()]


@lru_cache(maxsize=4)
def _make_client(uri: str) -> "MlflowClient":
    # A server that is away must be noticed in seconds, not after MLflow's minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if uri.startswith(("http://", "https://")):
        user, uri = split_user(uri)  # it prints the address in links and errors
        name, _, password = user.partition(":")
        for variable, value in (("MLFLOW_TRACKING_USERNAME", name), ("MLFLOW_TRACKING_PASSWORD", password)):
            if value:
                os.environ[variable] = unquote(value)
    from mlflow import MlflowClient  # imported here: slow, and not needed without tracking

    return MlflowClient(tracking_uri=uri)


def _open_run(client: "MlflowClient", experiment: str, name: str, key: str, tags: dict[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment)
    try:
        experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    except MlflowException:  # another process was first
        experiment_id = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs([experiment_id], f"tags.`{_KEY_TAG}` = '{key}'", max_results=1)
    if runs:
        run_id: str = runs[0].info.run_id
        client.update_run(run_id, status="RUNNING")
        return run_id
    return str(client.create_run(experiment_id, run_name=name, tags={_KEY_TAG: key, **tags}).info.run_id)


def _log_points(client: "MlflowClient", run: str, points: list[tuple[str, float, int]]) -> None:
    from mlflow.entities import Metric

    start = client.get_run(run).info.start_time
    metrics = [Metric(key, value, start + step, step) for key, value, step in points]
    for first in range(0, len(metrics), _BATCH):
        client.log_batch(run, metrics=metrics[first : first + _BATCH])


def _send_arm(client: "MlflowClient", run: str, config: AblationConfig, arm: Arm, store: ArtifactStore) -> None:
    from mlflow.entities import Param, RunTag

    parts = ArmPlan(config, arm).parts()
    params = [Param(key, value[:6000]) for key, value in _flatten_parameters(config, arm).items()]
    addresses = {"backbone": parts.backbone, "probes": parts.probes}
    for target in config.targets:
        for kind, refs in (("samples", parts.samples), ("scores", parts.scores), ("baselines", parts.baselines)):
            addresses[f"{kind}.{target.name}"] = refs[target.name]
    tags = [RunTag(f"artifact.{name}", store.address(ref)) for name, ref in addresses.items()]
    client.log_batch(run, params=params, tags=tags)
    curves = gather_curves(parts, store)
    points = [
        (f"pretrain/{metric}", value, step) for metric, value, step in curves["metric", "value", "step"].iter_rows()
    ]
    for row in gather_rows(config, parts, gather_scores(config, parts, store), store).iter_rows(named=True):
        seen = row["sees"] if row["finetune_epochs"] == 0 else "finetuned"
        method = row["method"] if row["ensemble"] == 1 else f"{row['method']}-ensemble-{row['ensemble']}"
        if row["method"] == "distilled_init":  # one for each number of steps
            method += f"-{row['gradient_steps']}"
        key = f"{row['target']}/{method}/{seen}"
        points.append((f"{key}/accuracy", row["accuracy_mean"], row["finetune_epochs"]))
        points.append((f"{key}/loss", row["loss_mean"], row["finetune_epochs"]))
        points.append((f"{key}/calibration", row["calibration_mean"], row["finetune_epochs"]))
        if row["novelty_mean"] is not None:
            points.append((f"{key}/novelty", row["novelty_mean"], row["finetune_epochs"]))
    for row in (
        gather_probes(resolve_ablation(config), parts, store).filter(pl.col("value").is_finite()).iter_rows(named=True)
    ):
        points.append((f"probes/{row['zoo']}/{row['property']}/{row['features']}/{row['metric']}", row["value"], 0))
    _log_points(client, run, points)
    _log_file(client, run, "curves.png", plot_png(lambda: plot_curves(curves)))
    client.set_terminated(run, "FINISHED")


def _send_card(client: "MlflowClient", run: str, name: str, zoo: Artifact) -> None:
    client.set_tag(run, f"artifact.zoo.{name}", zoo.address)
    for file in zoo.manifest.files:
        if file.startswith("card"):
            _log_file(client, run, file, zoo.path(file).read_bytes(), folder=f"zoos/{name}")


def _send_comparison(client: "MlflowClient", run: str, comparison: Artifact, zoos: Mapping[str, Artifact]) -> None:
    for name, zoo in zoos.items():
        _send_card(client, run, name, zoo)
    client.set_tag(run, "artifact.comparison", comparison.address)
    answers, _ = read_answers(comparison)
    client.set_tag(run, _NOTE_TAG, "\n\n".join(f"**{answer.question}** {answer.text}" for answer in answers))
    for name in _COMPARISON_FILES:
        if name not in comparison.manifest.files:  # a figure that has nothing to say
            continue
        _log_file(client, run, name, comparison.path(name).read_bytes())
    client.set_terminated(run, "FINISHED")


def _log_file(client: "MlflowClient", run: str, name: str, data: bytes, folder: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / name
        path.write_bytes(data)
        client.log_artifact(run, str(path), folder)


def _flatten_parameters(config: AblationConfig, arm: Arm) -> dict[str, str]:
    """Return the settings that people filter and compare by: the arm's own first."""
    parameters: dict[str, Any] = {
        "composition": arm.composition.name,
        "seed": arm.seed,
        "zoos": ", ".join(part.zoo for part in arm.composition.slices),
        **{key: "not known" if count is None else count for key, count in config.count_parts(arm.composition).items()},
    }
    sections = {
        "tokens": config.tokens,
        "backbone": config.find_backbone(arm.composition),
        "sampling": config.sampling,
        "evaluation": config.evaluation,
    }
    for section, settings in sections.items():
        for key, value in settings.model_dump(mode="json").items():
            parameters[f"{section}.{key}"] = value
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in parameters.items()}
