"""A canary in every place where a secret can be given, and a search for it in all that a run leaves behind."""

import io
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from mzsane.config import NetworkConfig
from mzsane.networks.build import build_network, initialise_network
from tests.fetch.http_server import serve
from tests.pipeline.harness import MINI, Output, finish_command, start_command

CANARY = "CANARY7q"
SECRETS = {
    "AWS_ACCESS_KEY_ID": f"{CANARY}-access-key",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-secret",
    "AWS_SESSION_TOKEN": f"{CANARY}-session",
    "HF_TOKEN": f"hf_{CANARY}",
    "MZSANE_S3_ENDPOINT": "http://127.0.0.1:1",
}
NETWORK = {"architecture": "cnn-s", "activation": "tanh"}


def make_zip(models: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(models):
            network = build_network(NetworkConfig(**NETWORK), 1, 4, 28)
            initialise_network(network, "kaiming_uniform", torch.Generator().manual_seed(number))
            data = io.BytesIO()
            torch.save(network.state_dict(), data)
            archive.writestr(f"m{number}.pt", data.getvalue())
    return packed.getvalue()


def write_ablation(address: str, path: Path) -> str:
    images = MINI["zoos"][0]["images"]
    read = {"network": NETWORK, "images": images, "measure": True}
    zoos = [
        {"name": "letters", "source": f"{address}/token/{CANARY}/zoo.zip?X-Amz-Signature={CANARY}&id={CANARY}", **read},
        {"name": "fetched", "download": {"name": "d", "source": f"{address}/zoo.zip?token={CANARY}"}, **read},
    ]
    config = {**MINI, "zoos": [], "read_zoos": zoos}
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.fixture
def user(tmp_path, environment) -> dict[str, str]:
    """The environment of a user with secrets; all that is written is below `tmp_path/written`."""
    written = tmp_path / "written"
    for name in ("tmp", "prefect", "home"):
        (written / name).mkdir(parents=True)
    places = {
        "MZSANE_ROOT": "store",
        "MZSANE_CACHE": "cache",
        "TMPDIR": "tmp",
        "PREFECT_HOME": "prefect",
        "HOME": "home",
    }
    return environment | SECRETS | {variable: str(written / name) for variable, name in places.items()}


def run(arguments: list[str], environment: dict[str, str], module: str = "flows.ablation") -> Output:
    return finish_command(start_command(arguments, environment, module))


@pytest.mark.slow
def test_no_secret_is_left_behind_by_an_ablation(user, tmp_path):
    written = tmp_path / "written"
    data = make_zip(6)
    with serve() as server:
        server.files = {"/zoo.zip": data, f"/token/{CANARY}/zoo.zip": data}
        path = write_ablation(server.url, tmp_path / "mini.yaml")
        done = run([path, "--processes", "1", "--arms", "1"], user | track(written))
        assert done.code == 0, done.err
        lost = run([path, "--resend"], user | {"MLFLOW_TRACKING_URI": f"http://alice:{CANARY}@127.0.0.1:1/mlflow"})
        assert lost.code == 1
        assert "TRACKING IS LOST: MLflow at http://127.0.0.1:1/mlflow failed" in lost.err
        planned = run([path, "--plan"], user)
        assert planned.out.count("there") > 5
    for output in (done, lost, planned):
        assert CANARY not in output.out + output.err
    check_written(written)


def test_no_secret_is_left_behind_by_a_zoo(user, tmp_path):
    written = tmp_path / "written"
    zoo = {
        "name": "z",
        "source": "{}/token/{}/zoo.zip?X-Token={}",
        "metadata": "{}/table.csv?id={}",
        "network": NETWORK,
    }
    with serve() as server:
        server.files = {f"/token/{CANARY}/zoo.zip": make_zip(3), "/table.csv": b"file,test_acc\nm0.pt,0.5\n"}
        for key in ("source", "metadata"):
            zoo[key] = zoo[key].format(server.url, CANARY, CANARY)
        (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(zoo))
        command = ["make", str(tmp_path / "zoo.yaml"), "--processes", "1"]
        made = run(command, user | track(written), "flows.zoo")
    assert made.code == 0, made.err
    assert f"{server.url}/token/***/zoo.zip" in made.out
    assert CANARY not in made.out + made.err
    check_written(written)


def track(written: Path) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": f"sqlite:///{written}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": f"{written}/mlruns",
    }


def check_written(written: Path) -> None:
    assert (written / "mlflow.db").stat().st_size > 0
    assert list((written / "prefect").glob("*.db"))
    assert [str(path) for path in written.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("http://alice:{}@127.0.0.1:1/zoo.zip", ".netrc"),
        ("s3://key:{}@bucket/zoo", "AWS_SECRET_ACCESS_KEY"),
        ("{address}/missing.zip?token={}", "/missing.zip"),
        ("ftp://alice:{}@127.0.0.1:1/zoo.zip", "FSSPEC_FTP_PASSWORD"),
        ("zip://m0.pt::{address}/missing.zip?token={}", "missing"),
    ],
)
def test_no_secret_is_said_of_a_source_that_is_refused(source, said, user, tmp_path, monkeypatch, capfd):
    from flows.commands.app import main

    for name, value in user.items():
        monkeypatch.setenv(name, value)
    with serve() as server:
        address = source.replace("{address}", server.url).format(CANARY)
        for key in ("source", "metadata"):
            zoo = {"name": "z", "source": str(tmp_path), key: address}
            (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(zoo))
            code = main(["zoo", "export", str(tmp_path / "zoo.yaml"), str(tmp_path / "out")])
            out, err = capfd.readouterr()
            assert code in (1, 2)
            assert CANARY not in out + err
        if source.startswith("{address}"):
            assert main(["zoo", "download", address]) == 2
            out, err = capfd.readouterr()
            assert said in err
            assert CANARY not in out + err
