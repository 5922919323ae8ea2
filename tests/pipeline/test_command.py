"""The command `mzsane ablate`: what it refuses and how, what it plans, and two of them at once."""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from flows.presets import list_presets, load_preset
from infra import processes
from mzsane.config import AblationConfig
from mzsane.metrics import NO_SINK
from mzsane.plan import plan_ablation, plan_zoo_stage
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from tests.pipeline.harness import (
    MINI,
    REPOSITORY,
    SERIAL,
    finish_command,
    have_equal_rows,
    list_files,
    read_comparison,
    run_command,
    start_command,
    wait_until,
    write_config,
)
from tests.problems.images.test_stored import write_idx


@pytest.mark.parametrize("name", list_presets())
def test_shipped_presets_load(name):
    config = load_preset(name)
    assert config.name == name
    assert plan_ablation(config)[-1].work.kind == "comparison"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nonsense"], ["'nonsense'", "tiny", "demo"]),
        (["tiny", "--set", "backbone.nonsense=1"], ["backbone.nonsense", "unknown key"]),
        (["tiny", "--set", "zoos.digits.learning_rate=-0.1"], ["learning_rate", "greater than 0", "-0.1"]),
        (["tiny", "--set", "compositions.digits.slices.0.models=6"], ["'digits'", "6 training models", "has 5"]),
        (["tiny", "--set", "backbone"], ["'backbone'", "path.to.key=value"]),
        (["nothing/there.yaml"], ["nothing/there.yaml", "no such config file"]),
        (["tiny", "--resend"], ["tiny", "not finished"]),
    ],
)
def test_wrong_settings_are_refused_in_one_line(arguments, parts, command_session):
    output = command_session(arguments)
    output.assert_refused(*parts)
    assert output.code == 2


def test_unknown_protocol_is_refused(command_session):
    command_session(["tiny"], "gopher://nowhere/store").assert_refused("MZSANE_ROOT", "gopher")


def test_folder_that_cannot_be_made_is_refused(command_session, tmp_path):
    (tmp_path / "file").write_text("in the way")
    command_session(["tiny"], str(tmp_path / "file" / "store")).assert_refused(str(tmp_path / "file"))


def test_unreachable_store_is_refused(environment):
    environment |= {
        "MZSANE_ROOT": "s3://x/y",
        "MZSANE_S3_ENDPOINT": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "unlikely",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    run_command(["tiny"], environment).assert_refused("s3://x/y", "http://127.0.0.1:1", "MZSANE_S3_ENDPOINT")


def read_states(text: str) -> dict[str, str]:
    """Return the states in a plan by label of the stage."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {label: state for label, _, state in rows}


def test_plan_tells_what_is_to_do(command_session, tiny, tmp_path):
    output = command_session(["tiny", "--plan"], str(tmp_path / "store"))
    assert output.code == 0, output.err
    assert read_states(output.out) == {stage.label: "to do" for stage in plan_ablation(tiny)}
    assert list_files(str(tmp_path)) == []


def test_plan_tells_what_is_there(command_session, tiny, reference_run):
    output = command_session(["tiny", "--plan"], reference_run.root)
    assert read_states(output.out) == {stage.label: "there" for stage in plan_ablation(tiny)}


def test_plan_tells_what_continues(command_session, tiny, tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    store.partial(plan_zoo_stage(tiny.zoos[0]).work).write("models-000000-000004.safetensors", b"")
    states = read_states(command_session(["tiny", "--plan"], store.root).out)
    assert states.pop("zoo digits") == "continues"
    assert set(states.values()) == {"to do"}


def test_finished_ablation_is_shown_again(command_session, reference_run):
    before = list_files(reference_run.root)
    output = command_session(["tiny"], reference_run.root)
    assert output.code == 0, output.err
    assert "nothing to do" in output.out
    page = Path(output.out.splitlines()[-1])
    assert page.name.startswith("report-")
    assert page.is_file()
    assert list_files(reference_run.root) == before


def test_changed_file_is_refused(mini, served_environment, tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    zoo, tokens = plan_ablation(AblationConfig.model_validate(MINI))[:2]
    zoo.make(store, SERIAL, NO_SINK)
    path = tokens.make(store, SERIAL, NO_SINK).path("weights-00000.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    output = run_command([str(mini), "--processes", "1"], served_environment)
    output.assert_refused(path.name, "sha256")
    assert output.code == 1


def test_full_disk_is_reported(mini, served_environment, tmp_path):
    """The store's file system has room for the first chunk of the zoo and not for all of it."""
    # A mount of one process's own: nothing is left of it afterwards.
    enter = ["unshare", "--mount", "sh", "-c"]
    root = tmp_path / "small"
    root.mkdir()
    mount = f"mount -t tmpfs -o size=60k tmpfs {root}"
    if not shutil.which("unshare") or subprocess.run([*enter, mount], capture_output=True).returncode:
        pytest.skip("no rights to mount a small file system")
    process = subprocess.Popen(
        [*enter, f'{mount} && exec "$@"', "sh", sys.executable, "-m", "flows.ablation", str(mini), "--processes", "1"],
        cwd=REPOSITORY,
        env=served_environment | {"MZSANE_ROOT": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output = finish_command(process)
    output.assert_refused("no space left", str(root), "MZSANE_ROOT", "continues where this one stopped")
    assert "partial/zoo/" in output.errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "number", "code"),
    [
        (os.kill, signal.SIGINT, -signal.SIGINT),
        (os.killpg, signal.SIGINT, -signal.SIGINT),  # Ctrl-C: its temporary server and its workers hear it too
        (os.kill, signal.SIGTERM, 143),
    ],
)
def test_nothing_is_left_of_a_command_that_is_stopped(kill, number, code, environment, tmp_path):
    compositions = [{"name": f"of-{n}", "slices": [{"zoo": "letters", "models": n}]} for n in (2, 3)]
    endless = MINI | {"compositions": compositions, "backbone": MINI["backbone"] | {"steps": 10**6}}
    path = write_config(AblationConfig.model_validate(endless), tmp_path / "endless.yaml")
    marker = f"test-stopped-{uuid.uuid4().hex}"
    own = {"PREFECT_HOME": str(tmp_path / "prefect"), processes.MARKER: marker}
    command = start_command([str(path), "--arms", "2"], environment | own)
    try:
        backbones = Path(environment["MZSANE_ROOT"]) / "partial" / "backbone"
        wait_until(lambda: len(list(backbones.glob("*/*"))) >= 2, "both backbones are trained")
        assert len(processes.find_members(marker)) >= 4  # itself, Prefect's temporary server, two workers
        kill(command.pid, number)
        command.communicate(timeout=30)
        assert command.returncode == code
        wait_until(lambda: not processes.find_members(marker), "all that it started has ended", seconds=10)
    finally:
        processes.terminate(marker)


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_two_ablations_at_once_share_one_root(tiny, reference_run, environment, tmp_path):
    """Both start with nothing, need the same zoos and tokens, and have a Prefect of their own."""
    digits, both = tiny.compositions
    near, far = tiny.targets
    parts = {"first": (digits, near), "second": (both, far)}
    configs, commands = {}, {}
    for name, (composition, target) in parts.items():
        changes = {"name": name, "compositions": (composition,), "targets": (target,)}
        configs[name] = tiny.model_copy(update=changes)
        path = write_config(configs[name], tmp_path / f"{name}.yaml")
        home = {"PREFECT_HOME": str(tmp_path / f"prefect-{name}")}
        commands[name] = start_command([str(path), "--processes", "1"], environment | home)
    outputs = {name: finish_command(process) for name, process in commands.items()}

    store = ArtifactStore(environment["MZSANE_ROOT"])
    known = read_comparison(tiny, reference_run)
    for name, (composition, target) in parts.items():
        assert outputs[name].code == 0, outputs[name].err
        assert "Traceback" not in outputs[name].err
        expected = known.filter(pl.col("composition") == composition.name, pl.col("target") == target.name)
        assert have_equal_rows(read_comparison(configs[name], store), expected)
    works = {stage.work.ref for config in configs.values() for stage in plan_ablation(config)}
    for ref in works:
        artifact = store.open(ref)
        for name in artifact.manifest.files:
            artifact.path(name)
        # Nothing lies there but what the manifest names: the slower writer has taken its files away.
        names = {entry.path for entry in artifact.manifest.files.values()} | {"manifest.json"}
        assert {path.name for path in list_files(f"{store.root}/{ref}")} == names
    made = Counter(path.parent.parent.name for path in list_files(store.root) if path.name == "manifest.json")
    assert made == Counter(ref.kind for ref in works)
    assert made["zoo"] == made["tokens"] == 2
    assert list_files(f"{store.root}/partial") == []


def test_arms_at_the_same_time_have_the_same_numbers(tiny, reference_run, served_environment, tmp_path):
    together = tiny.model_copy(update={"name": "together", "targets": tiny.targets[:1]})
    path = write_config(together, tmp_path / "together.yaml")
    output = run_command([str(path), "--processes", "2", "--arms", "2"], served_environment)
    assert output.code == 0, output.err
    for composition in tiny.compositions:
        assert f"Beginning subflow run 'arm-{composition.name}-s0'" in output.err
    known = read_comparison(tiny, reference_run).filter(target=tiny.targets[0].name)
    assert have_equal_rows(read_comparison(together, ArtifactStore(served_environment["MZSANE_ROOT"])), known)


def test_arms_that_fail_at_the_same_time_are_told_in_one_line(mini, served_environment):
    settings = ["--set", "backbone.learning_rate=10", "--set", "seeds=[0, 1]"]
    output = run_command([str(mini), "--processes", "1", "--arms", "2", *settings], served_environment)
    output.assert_refused("2 of 2", "exploded", "backbone.learning_rate")


def test_what_there_is_is_compared_when_an_arm_fails_and_only_that_arm_runs_again(mini, served_environment, tmp_path):
    config = yaml.safe_load(mini.read_text())
    wild = config["compositions"][0] | {"name": "wild", "backbone": config["backbone"] | {"learning_rate": 10}}
    config["compositions"].append(wild)
    path = tmp_path / "one-fails.yaml"
    path.write_text(yaml.safe_dump(config))
    output = run_command([str(path), "--processes", "1"], served_environment)
    output.assert_refused("1 of 2", "wild-s0", "exploded", "1 of 2 arms) is compared in", "run again")
    assert "1 of 2 arms is missing (wild-s0)" in " ".join(output.out.split())
    store = ArtifactStore(served_environment["MZSANE_ROOT"])
    (found,) = [
        store.open(ArtifactRef(kind="comparison", fingerprint=name)) for name in store.files.list_names("comparison")
    ]
    assert pl.read_parquet(found.path("comparison.parquet"))["arm"].unique().to_list() == ["letters-s0"]
    assert found.manifest.counts["missing"] == ["wild-s0"]
    assert (
        "1 of 2 arms is missing (wild-s0): all that follows is of the others." in found.path("report.html").read_text()
    )
    backbones = store.files.list_names("backbone")
    mended = run_command([str(path), "--set", "compositions.wild.backbone.learning_rate=0.002"], served_environment)
    assert mended.code == 0, mended.err
    assert "missing" not in mended.out
    assert len(store.files.list_names("backbone") - backbones) == 1
    log = mended.out + mended.err
    assert "backbone letters-s0: already there" in log
    assert "backbone wild-s0: done" in log


def test_images_of_targets_are_looked_at_before_any_work(mini, served_environment, tmp_path):
    write_idx(tmp_path / "data" / "KMNIST" / "raw", "t10k", np.zeros((40, 28, 28), np.uint8), np.arange(40) % 10)
    config = yaml.safe_load(mini.read_text())
    network = {"architecture": "cnn-s", "activation": "tanh"}
    config["targets"].append({"name": "late", "images": {"source": "kmnist"}, "network": network})
    path = tmp_path / "late.yaml"
    path.write_text(yaml.safe_dump(config))
    variables = served_environment | {"MZSANE_DATA": str(tmp_path / "data")}
    output = run_command([str(path), "--processes", "1"], variables)
    output.assert_refused("target 'late'", "kmnist has no train images")
    assert not [name for name in ArtifactStore(served_environment["MZSANE_ROOT"]).files.walk() if "zoo" in name]


@pytest.mark.slow
def test_tiny_has_the_same_bits_with_one_arm_and_two_at_a_time(environment, tmp_path):
    """Threads of a process follow the number of arms by default, and must not reach what is computed."""
    settings = ["seeds=[5]", "backbone.steps=12", "sampling.samples=4", "evaluation.finetune_epochs=[0]"]
    arguments = ["tiny", *(word for setting in settings for word in ("--set", setting))]
    own = {name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"}
    digests = []
    for arms in ("1", "2"):
        root = tmp_path / arms
        output = run_command([*arguments, "--arms", arms], own | {"MZSANE_ROOT": str(root)})
        assert output.code == 0, output.err
        store = ArtifactStore(str(root))
        config = load_preset("tiny", settings)
        files = {}
        for stage in plan_ablation(config):
            manifest = store.open(stage.work.ref).manifest
            if stage.work.kind in ("zoo", "tokens", "backbone", "samples"):
                weights = {name for name in manifest.files if name.endswith((".safetensors", "part-00000.parquet"))}
                files |= {(stage.label, name): manifest.files[name].sha256 for name in weights}
            if stage.work.kind == "backbone":
                assert manifest.counts["threads"] == 1
        digests.append((files, read_comparison(config, store)))
    assert digests[0][0] == digests[1][0]
    assert len(digests[0][0]) >= 6
    assert have_equal_rows(digests[0][1], digests[1][1])
