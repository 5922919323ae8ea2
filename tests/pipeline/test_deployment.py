"""The deployments: their forms, and a run from the command line to Prefect's and MLflow's pages."""

import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from flows.dispatch import wait_for_runs
from mzsane.config import DownloadConfig, ReadConfig
from mzsane.errors import WorkerError
from mzsane.plan import ArmPlan, list_arms, plan_ablation, plan_comparison_stage, plan_zoo_stage
from mzsane.zoo.export import export_zoo
from mzsane.zoo.shards import read_index
from tests.fetch.http_server import serve
from tests.pipeline.harness import REPOSITORY, SERIAL, have_equal_rows, read_comparison, start_deployed, wait_until

FIGURES = ("heatmap", "accuracy", "novelty", "finetuning", "latents")  # two arms have no effects to show
DEPLOYMENTS = {
    "ablation/zoo-composition",
    "arm/run",
    "backbone/pretrain",
    "samples/draw",
    "scores/evaluate",
    "tokens/build",
    "zoo/download",
    "zoo/train",
}


@pytest.fixture(scope="module")
def mlflow_runs(running_stack, watched, tiny):
    """The MLflow runs of the experiment by name."""
    client = running_stack.open_mlflow()
    runs = client.search_runs([client.get_experiment_by_name(tiny.name).experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def find_artifacts(running_stack, *runs):
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    with running_stack.open_prefect() as client:
        return client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=list(runs)))
        )


def find_children(running_stack, run):
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId

    chosen = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
    with running_stack.open_prefect() as client:
        return client.read_flow_runs(flow_run_filter=chosen)


def test_every_field_of_every_form_has_a_help_text(running_stack):
    with running_stack.open_prefect() as client:
        deployments = {
            f"{client.read_flow(deployment.flow_id).name}/{deployment.name}": deployment.parameter_openapi_schema
            for deployment in client.read_deployments()
        }
    assert set(deployments) == DEPLOYMENTS
    silent = []
    for name, schema in deployments.items():
        parts = {"": schema, **schema.get("definitions", {}), **schema.get("$defs", {})}
        assert sum(len(part.get("properties", {})) for part in parts.values()) > 0
        silent += [
            f"{name}: {part}.{field}"
            for part, content in parts.items()
            for field, description in content.get("properties", {}).items()
            if not description.get("description", "").strip()
        ]
    assert silent == []


def test_form_shows_the_whole_config(running_stack):
    with running_stack.open_prefect() as client:
        schema = client.read_deployment_by_name("ablation/zoo-composition").parameter_openapi_schema
    assert set(schema["properties"]) == {"config", "preset", "settings", "execution"}
    assert schema["properties"]["config"]["default"]["name"] == "demo"
    fields = schema["definitions"]["BackboneConfig"]["properties"]
    assert {"steps", "learning_rate", "gamma"} <= set(fields)


def test_refused_parameter_starts_no_run(running_stack):
    """What the form's schema forbids is refused at submission, before anything runs."""
    from prefect.exceptions import PrefectHTTPStatusError

    with running_stack.open_prefect() as client:
        deployment = client.read_deployment_by_name("ablation/zoo-composition")
        with pytest.raises(PrefectHTTPStatusError, match="processes"):
            client.create_flow_run_from_deployment(deployment.id, parameters={"execution": {"processes": 0}})


def test_runs_that_fail_or_are_deleted_are_named_when_all_have_ended(running_stack):
    from prefect import flow
    from prefect.logging.loggers import disable_run_logger
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Completed, Failed, Pending

    @flow
    def part():
        pass

    states = {"good": Completed(), "bad": Failed(message="no images"), "gone": Pending()}
    with running_stack.open_prefect() as client:
        runs = [client.create_flow_run(part, name=name, state=state) for name, state in states.items()]
        client.delete_flow_run(runs[-1].id)
    served = temporary_settings({PREFECT_API_URL: f"{running_stack.settings.prefect_url}/api"})
    with served, disable_run_logger():
        wait_for_runs(runs[:1])
        with pytest.raises(WorkerError, match=r"^bad failed \(no images\); gone was deleted\. Run the same"):
            wait_for_runs(runs)


def test_watched_run_and_its_parts_are_completed(running_stack, watched, tiny):
    assert watched.state.is_completed()
    children = find_children(running_stack, watched)
    assert all(child.state.is_completed() for child in children)
    arms = [f"arm-{arm.name}" for arm in list_arms(tiny)]
    assert sorted(child.name for child in children) == sorted([*arms, "tokens-digits", "tokens-letters"])
    with running_stack.open_prefect() as client:
        flows = {child.name: client.read_flow(child.flow_id).name for child in children}
    assert {flows[arm] for arm in arms} == {"arm"}


def test_run_is_named_after_its_preset(watched):
    assert watched.name == "ablation-tiny"


def test_watched_run_gives_the_numbers_of_the_library(running_stack, watched, tiny, reference_run, tmp_path):
    store = running_stack.open_store(tmp_path)
    assert have_equal_rows(read_comparison(tiny, store), read_comparison(tiny, reference_run))
    for stage in plan_ablation(tiny):
        artifact = store.open(stage.work.ref)
        for name in artifact.manifest.files:
            artifact.path(name)


def test_prefect_pages_show_the_comparison(running_stack, watched, tiny):
    by_key = {artifact.key: artifact for artifact in find_artifacts(running_stack, watched.id) if artifact.key}
    types = {"comparison": "table", "findings": "markdown"} | dict.fromkeys(FIGURES, "image")
    assert {key: artifact.type for key, artifact in by_key.items() if key in types} == types
    assert '"font-digits"' in by_key["comparison"].data
    assert "# tiny" in by_key["findings"].data
    assert "What should the zoo be made of?" in by_key["findings"].data
    assert "s3://mzsane/store/comparison/" in by_key["findings"].data
    assert running_stack.settings.mlflow_url in by_key["findings"].data


def test_prefect_pages_show_progress(running_stack, watched):
    children = [child.id for child in find_children(running_stack, watched)]
    progress = {
        artifact.description: float(artifact.data)
        for artifact in find_artifacts(running_stack, *children)
        if artifact.type == "progress"
    }
    assert progress == dict.fromkeys(["zoo digits", "zoo letters", "backbone digits-s0", "backbone both-s0"], 100.0)


def test_mlflow_has_a_parent_and_a_child_for_each_arm(mlflow_runs, tiny):
    assert set(mlflow_runs) == {"tiny", "digits-s0", "both-s0"}
    parent = mlflow_runs["tiny"]
    assert {run.info.status for run in mlflow_runs.values()} == {"FINISHED"}
    assert "mlflow.parentRunId" not in parent.data.tags
    for name in ("digits-s0", "both-s0"):
        assert mlflow_runs[name].data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_mlflow_has_parameters_and_scores(mlflow_runs, tiny, reference_run):
    params = mlflow_runs["both-s0"].data.params
    assert params["composition"] == "both"
    assert params["zoos"] == "digits, letters"
    assert params["backbone.steps"] == str(tiny.backbone.steps)
    rows = read_comparison(tiny, reference_run)
    for arm in ("digits-s0", "both-s0"):
        metrics = mlflow_runs[arm].data.metrics
        for row in rows.filter(pl.col("arm") == arm).iter_rows(named=True):
            seen = row["sees"] if row["finetune_epochs"] == 0 else "finetuned"
            method = row["method"] if row["ensemble"] == 1 else f"{row['method']}-ensemble-{row['ensemble']}"
            if row["method"] == "distilled_init":
                method += f"-{row['gradient_steps']}"
            key = f"{row['target']}/{method}/{seen}"
            assert f"{key}/accuracy" in metrics
            if row["finetune_epochs"] == 0:  # one point; fine-tuned there is one for each number of epochs
                assert metrics[f"{key}/accuracy"] == row["accuracy_mean"]
                assert metrics[f"{key}/loss"] == row["loss_mean"]
                assert metrics[f"{key}/calibration"] == row["calibration_mean"]
                assert metrics.get(f"{key}/novelty") == row["novelty_mean"]


def test_mlflow_has_the_curves_once(running_stack, mlflow_runs, tiny):
    client = running_stack.open_mlflow()
    for arm in ("digits-s0", "both-s0"):
        history = client.get_metric_history(mlflow_runs[arm].info.run_id, "pretrain/loss")
        assert sorted(point.step for point in history) == list(range(20, tiny.backbone.steps + 1, 20))
    zoos = client.get_run(mlflow_runs["tiny"].info.run_id).data.metrics
    assert {"zoo/digits/test_accuracy", "zoo/letters/test_accuracy"} <= set(zoos)


def test_mlflow_leads_to_the_artifacts(running_stack, mlflow_runs, tiny, tmp_path):
    store = running_stack.open_store(tmp_path)
    addresses = {store.address(stage.work.ref) for stage in plan_ablation(tiny)}
    tagged = set()
    for run in mlflow_runs.values():
        tagged |= {value for name, value in run.data.tags.items() if name.startswith("artifact.")}
    assert all(address.startswith("s3://mzsane/store/") for address in tagged)
    assert tagged <= addresses
    expected = {store.address(stage.work.ref) for arm in list_arms(tiny) for stage in ArmPlan(tiny, arm).stages()}
    expected |= {store.address(plan_zoo_stage(zoo).work.ref) for zoo in tiny.all_zoos}
    assert tagged == expected | {store.address(plan_comparison_stage(tiny).work.ref)}
    for stage in plan_ablation(tiny):
        assert store.exists(stage.work.ref)


def test_mlflow_has_the_figures(running_stack, mlflow_runs):
    client = running_stack.open_mlflow()
    files = {name: {file.path for file in client.list_artifacts(run.info.run_id)} for name, run in mlflow_runs.items()}
    assert files["tiny"] >= {f"{name}.png" for name in (*FIGURES, "curves")} | {"report.html"}
    assert files["digits-s0"] >= {"curves.png"}
    assert files["both-s0"] >= {"curves.png"}


def test_entrypoints_are_flows(monkeypatch):
    from prefect.flows import Flow, load_flow_from_entrypoint

    monkeypatch.chdir(REPOSITORY)
    entries = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    flows = {entry["name"]: load_flow_from_entrypoint(entry["entrypoint"]) for entry in entries}
    assert all(isinstance(flow, Flow) for flow in flows.values())
    assert {f"{flow.name}/{name}" for name, flow in flows.items()} == DEPLOYMENTS


def test_layers_hold():
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(tool), "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def await_completed(running_stack, run_id):
    with running_stack.open_prefect() as client:
        state = wait_until(lambda: (state := client.read_flow_run(run_id).state).is_final() and state, "the run's end")
    assert state.is_completed(), state.message


def test_downloaded_zoo_is_read_and_tracked(running_stack, tiny_zoo_config, tiny_zoo, tmp_path):
    """A zip on a web server: `zoo/download` fetches it, `zoo/train` reads it, MLflow and Prefect have its card."""
    export_zoo(tiny_zoo, str(tmp_path / "exported"))
    packed = shutil.make_archive(str(tmp_path / "zoo"), "zip", tmp_path / "exported")
    with serve() as server:
        server.files["/zoo.zip"] = Path(packed).read_bytes()
        download = DownloadConfig(name="theirs", source=f"{server.url}/zoo.zip", epochs=(2,), piece_bytes=1 << 16)
        run_id = start_deployed(running_stack, "zoo/download", download=download, execution=SERIAL)
        await_completed(running_stack, run_id)
    zoo = ReadConfig(name="theirs", download=download, images=tiny_zoo_config.images)
    run_id = start_deployed(running_stack, "zoo/train", zoo=zoo, execution=SERIAL)  # and the server is gone
    await_completed(running_stack, run_id)
    made = running_stack.open_store(tmp_path / "cache").open(plan_zoo_stage(zoo).work.ref)
    ours = read_index(tiny_zoo).filter(epoch=2)
    assert sorted(read_index(made)["sha256"]) == sorted(ours["sha256"])
    keys = {artifact.key for artifact in find_artifacts(running_stack, run_id)}
    assert {"card-theirs", "card-theirs-weights", "card-theirs-agreement"} <= keys
    client = running_stack.open_mlflow()
    (tracked,) = client.search_runs([client.get_experiment_by_name("zoos").experiment_id])
    assert (tracked.info.run_name, tracked.info.status) == ("theirs", "FINISHED")
    assert tracked.data.tags["artifact.zoo.theirs"] == made.address
    assert "zoos/theirs/card.md" in {file.path for file in client.list_artifacts(tracked.info.run_id, "zoos/theirs")}
