"""Archives behind addresses with a query: known for what they are, and read without a word of the query."""

import io
import tarfile
import zipfile

import polars as pl
import pytest
import torch

from mzsane.config import NetworkConfig, ReadConfig
from mzsane.errors import ConfigError
from mzsane.fetch.sources import open_source
from mzsane.networks.build import build_network, initialise_network
from mzsane.store.artifacts import ArtifactStore
from mzsane.zoo.read import plan_read, read_zoo
from tests.fetch.http_server import serve

C = "CANARYxyz9"


def make_members() -> dict[str, bytes]:
    members = {}
    for number in range(2):
        network = build_network(NetworkConfig(), 1, 10)
        initialise_network(network, "kaiming_uniform", torch.Generator().manual_seed(number))
        data = io.BytesIO()
        torch.save(network.state_dict(), data)
        members[f"m{number}.pt"] = data.getvalue()
    return members


def pack(kind: str, members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=packed, mode="w:gz" if kind == "tar.gz" else "w") as archive:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("path", ["/zoo.{}", "/download", "/get/file.{}"])
def test_archive_with_a_query_is_known_as_one(kind: str, path: str) -> None:
    path = path.format(kind)
    with serve() as server:
        server.files = {path: pack(kind, {"a.pt": b"a", "b.pt": b"b"})}
        with open_source(f"{server.url}{path}?sig={C}&to=a/b.html", 1000) as source:
            assert source.names() == ["a.pt", "b.pt"]
            assert source.read("b.pt") == b"b"
            assert source.address == f"{server.url}{path}"


def test_what_is_no_archive_is_refused() -> None:
    with serve() as server:
        server.files = {"/zoo": b"<html>"}
        opening = open_source(f"{server.url}/zoo?token={C}", 1000)
        with pytest.raises(ConfigError, match="neither a zip nor a tar") as caught, opening:
            pass
        assert C not in str(caught.value)


def test_a_zoo_holds_no_query_and_a_renewed_signature_renames_nothing(store: ArtifactStore) -> None:
    with serve() as server:
        server.files = {"/zoo.zip": pack("zip", make_members())}
        address = f"{server.url}/zoo.zip?X-Amz-Date={{}}&X-Amz-Signature={C}{{}}"
        first, renewed = (ReadConfig(name="z", source=address.format(n, n)) for n in (1, 2))
        zoo = read_zoo(first, store)
        assert read_zoo(renewed, store).ref == zoo.ref
        asked = len(server.requests)
        # What Prefect's database has of it finds the zoo, and cannot fetch another.
        stored = ReadConfig.model_validate(first.model_dump(mode="json"))
        assert read_zoo(stored, store).ref == zoo.ref
        with pytest.raises(ConfigError, match="kept in no manifest and no database"):
            read_zoo(stored.model_copy(update={"revision": "2"}), store)
        assert len(server.requests) == asked
        other = ReadConfig(name="z", source=f"{server.url}/zoo.zip?id=2")
        assert plan_read(other).ref != zoo.ref
    assert C not in zoo.manifest.model_dump_json() + zoo.path("card.md").read_text()
    rows = pl.read_parquet(zoo.path("index.parquet"))["source"].to_list()
    assert rows == [f"{server.url}/zoo.zip/m{number}.pt" for number in range(2)]


def test_users_of_netrc_may_read(tmp_path, monkeypatch) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login alice password {C}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    import base64

    with serve() as server:
        server.files = {"/zoo.zip": pack("zip", {"a.pt": b"a"})}
        server.faults.user = base64.b64encode(f"alice:{C}".encode()).decode()
        with open_source(f"{server.url}/zoo.zip", 1000) as source:
            assert source.names() == ["a.pt"]
