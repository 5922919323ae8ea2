"""Tracking is best effort: without MLflow the work goes on, and what was lost can be sent again."""

import logging
from pathlib import Path

import pytest

from mzsane.config import AblationConfig
from mzsane.plan import plan_comparison_stage
from mzsane.store.artifacts import ArtifactStore
from tasks.tracking import Tracker
from tests.pipeline.harness import MINI, run_command, write_config


def look(client, experiment: str) -> dict[str, tuple]:
    """Return all that MLflow has of an experiment's runs, by name."""
    found = {}
    for run in client.search_runs([client.get_experiment_by_name(experiment).experiment_id]):
        points = {
            key: sorted(
                (point.step, point.timestamp, point.value) for point in client.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
        }
        files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
        tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.user")}
        assert run.info.run_name not in found
        found[run.info.run_name] = (run.info.run_id, run.info.status, run.data.params, tags, points, files)
    return found


def test_lost_tracking_is_sent_again(running_stack, served_environment, command_session, tmp_path):
    config = AblationConfig.model_validate(MINI | {"name": "lost"})
    path = str(write_config(config, tmp_path / "lost.yaml"))
    root, away = served_environment["MZSANE_ROOT"], "http://127.0.0.1:1"
    output = run_command([path, "--processes", "1"], served_environment | {"MLFLOW_TRACKING_URI": away})
    assert output.code == 0, output.err
    assert (output.out + output.err).count("TRACKING IS LOST") == 1
    assert "--resend" in output.err
    assert "Traceback" not in output.err
    assert ArtifactStore(root).exists(plan_comparison_stage(config).work.ref)

    failed = command_session([path, "--resend"], root, away)
    assert failed.code == 1
    assert "NOT sent" in failed.out

    back = running_stack.settings.mlflow_url
    sent = command_session([path, "--resend"], root, back)
    assert sent.code == 0, sent.err
    client = running_stack.open_mlflow()
    first = look(client, "lost")
    assert set(first) == {"lost", "letters-s0"}
    assert {run[1] for run in first.values()} == {"FINISHED"}
    _, _, params, tags, points, files = first["letters-s0"]
    assert tags["mlflow.parentRunId"] == first["lost"][0]
    assert params["composition"] == "letters"
    assert [step for step, _, _ in points["pretrain/loss"]] == [20, 40, 60]
    assert "letters/samples/none/accuracy" in points
    assert "curves.png" in files
    assert "report.html" in first["lost"][5]
    assert "zoos" in first["lost"][5]
    cards = client.list_artifacts(first["lost"][0], f"zoos/{config.zoos[0].name}")
    assert {"card.md", "card-weights.png"} <= {Path(file.path).name for file in cards}

    again = command_session([path, "--resend"], root, back)
    assert again.code == 0, again.err
    assert look(client, "lost") == first


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_is_left_says_how_and_is_opened_again(running_stack, error, status):
    tracker = Tracker(running_stack.settings.mlflow_url, logging.getLogger("test"))
    run = tracker.open_zoo("left", status)
    with pytest.raises(error), tracker.watch(run):
        raise error
    client = running_stack.open_mlflow()
    assert client.get_run(run).info.status == status
    assert tracker.open_zoo("left", status) == run
    assert client.get_run(run).info.status == "RUNNING"
