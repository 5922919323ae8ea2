"""Addresses without their secrets: shown, stored, checked, and in any text."""

import pytest

from mzsane.addresses import check_address, check_openable, hide_secrets, show_address, split_user, store_address
from mzsane.errors import ConfigError

C = "CANARYxyz9"

WITH_SECRETS = [
    f"https://alice:{C}@host.org/zoo.zip",
    f"https://{C}@host.org/zoo.zip",
    f"http://alice:{C}/x@host.org/zoo.zip",
    f"http://alice:{C}?x#y@host.org:8080/zoo.zip",
    f"http://alice:p@{C}@host.org/zoo.zip",
    f"http://al%40ice:{C}%2F@[::1]:80/zoo.zip",
    f"https://host.org/zoo.zip?token={C}",
    f"https://host.org/zoo.zip?{C}",
    f"https://host.org/zoo.zip?a=b&X-Amz-Signature={C}#x",
    f"https://host.org/zoo.zip#access_token={C}",
    f"https://host.org/token/{C}/zoo.zip",
    f"https://host.org/files;jsessionid={C}/zoo.zip",
    f"https://host.org/hdnts=exp=1~hmac={C}/zoo.zip",
    f"https://host.org/sig={C}/zoo.zip",
    f"HTTPS://host.org/zoo.zip?token={C}",
    f"ftp://alice:{C}@host.org/zoo.zip",
    f"sftp://alice:{C}@host.org/zoo",
    f"s3://key:{C}@bucket/zoo",
    f"s3://bucket/zoo?X-Amz-Signature={C}",
    f"hf://user:{C}@owner/name",
    f"zip://m.pt::https://alice:{C}@host.org/zoo.zip",
    f"simplecache::s3://key:{C}@bucket/zoo",
    f"filecache::zip://*.pt::http://host.org/zoo.zip?sig={C}",
    f"postgresql+psycopg2://mlflow:{C}@db.host.org/mlflow",
    f"mssql+pyodbc://host.org/db?odbc_connect=PWD%3D{C}",
]

WITHOUT = [
    "https://zenodo.org/records/13144018/files/cifar10_cnn_sample_ep21-25.zip",
    "https://host.org/@scope/package@1.0.tgz",
    "https://host.org/ResNet18CIFAR10SeedGrid2022/zoo.zip",
    f"https://host.org/{'0a' * 20}/zoo.zip",
    "http://[::1]:9000/zoo.zip",
    "s3://bucket/prefix@v1/a#b?c",
    "s3a://bucket",
    "hf://owner/name@main/sub",
    "hf://datasets/owner/name",
    "github://owner:name@main/zoo",
    "abfs://container@account.dfs.core.windows.net/zoo",
    "file:///data/a?b=c",
    "zip://a@b.pt::/data/zoo.zip",
    "/data/a:b@c/d?e=f#g",
    "checkpoints",
    "mnist",
    "cifar10-cnn-sample",
]


@pytest.mark.parametrize("address", WITH_SECRETS)
def test_no_secret_is_shown_stored_or_said(address: str) -> None:
    for text in (
        show_address(address),
        store_address(address),
        hide_secrets(f"GET {address}: 404"),
        hide_secrets(f"failed: ('{address}', 3)"),
        str(ConfigError(f"{address} is not there")),
    ):
        assert C not in text
        assert "alice" not in text


@pytest.mark.parametrize("address", WITHOUT)
def test_other_addresses_stay_as_they_are(address: str) -> None:
    assert (
        show_address(address) == store_address(address) == check_address(address) == check_openable(address) == address
    )


@pytest.mark.parametrize("address", [*WITH_SECRETS, *WITHOUT])
def test_what_is_stored_is_stored_again_as_it_is(address: str) -> None:
    stored = store_address(address)
    assert store_address(stored) == stored
    assert show_address(stored) == show_address(address)
    assert check_address(stored) == stored


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("https://a:b@h/x", ".netrc"),
        ("https://token@h/x", ".netrc"),
        ("s3://k:s@b/x", "AWS_SECRET_ACCESS_KEY"),
        ("hf://u:t@o/n", "HF_TOKEN"),
        ("ftp://u:p@h/x", "FSSPEC_FTP_PASSWORD"),
        ("zip://m::sftp://u:p@h/x.zip", "FSSPEC_SFTP_USERNAME"),
        ("http://a:b/c@h/x", ".netrc"),
        ("https:/h/x", "two slashes"),
        ("https:h/x", "two slashes"),
        ("/data/a\nb", "control"),
        ("https://h/\x00", "control"),
    ],
)
def test_a_config_cannot_hold_it_and_the_error_says_what_to_do(address: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice) as caught:
        check_address(address)
    assert address not in str(caught.value)


class TestSignatures:
    AMAZON = "https://b.s3.amazonaws.com/{}?X-Amz-Algorithm=A&X-Amz-Credential=c&X-Amz-Date={}&X-Amz-Signature={}"
    AZURE = "https://a.blob.core.windows.net/c/{}?sv=2022&se={}&sr=b&sp=r&sig={}"
    CLOUDFRONT = "https://d.cloudfront.net/{}?Expires={}&Key-Pair-Id=K&Signature={}"
    OLD = "https://storage.googleapis.com/b/{}?GoogleAccessId=x&Expires={}&Signature={}"

    @pytest.mark.parametrize("form", [AMAZON, AZURE, CLOUDFRONT, OLD])
    def test_a_renewed_signature_changes_nothing(self, form):
        first, renewed = (store_address(form.format("zoo.zip", *signed)) for signed in (("1", "s1"), ("2", "s2")))
        assert first == renewed
        assert first != store_address(form.format("other.zip", "1", "s1"))
        versions = [store_address(form.format("zoo.zip", "1", "s1") + f"&versionId={number}") for number in (1, 2)]
        assert len({first, *versions}) == 3

    def test_other_queries_tell_objects_apart(self):
        stored = {store_address(f"https://h/get?{query}") for query in ("id=1", "id=2", "token=1", "token=2", "1")}
        assert len(stored) == 5
        assert store_address("https://h/get?a=1&b=2") == store_address("https://h/get?b=2&a=1")
        assert len({store_address(f"https://h/token/{name}/zoo.zip") for name in ("one", "two")}) == 2

    def test_what_was_left_out_cannot_be_opened(self):
        with pytest.raises(ValueError, match="kept in no manifest and no database") as caught:
            check_openable(store_address(f"https://h/zoo.zip?token={C}"))
        assert "https://h/zoo.zip is" in str(caught.value)


class TestTexts:
    @pytest.mark.parametrize(
        "text",
        [
            f"HTTPConnectionPool(host='h', port=9): Max retries exceeded with url: /zoo.zip?X-Token={C} (Caused by x)",
            f"connection to server at db: mlflow:{C}@db.host failed",
            f"headers {{'Authorization': 'Bearer {C}'}}",
            f"Authorization: Basic {C}==",
            f"see (https://u:{C}@h/x), https://h/y?a={C}.",
        ],
    )
    def test_libraries_words(self, text):
        assert C not in hide_secrets(text)

    def test_words_without_secrets_stay(self):
        for text in (
            "needs a group (?P<model>...) or (?=x), and no other",
            "is it running? a=b, 12:30 and zoo/a:1",
            "source s3://bucket/zoo has no file a?.pt, (http://127.0.0.1:9000/x).",
        ):
            assert hide_secrets(text) == text

    def test_values_of_the_environment(self, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "CANARY-1")
        monkeypatch.setenv("HF_TOKEN", "CANARY-2")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:CANARY%2D3@h/x")
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "plain-1")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/plain-2")
        said = hide_secrets("CANARY-1 CANARY-2 CANARY%2D3 CANARY-3 plain-1 /plain-2")
        assert said == "*** *** *** *** plain-1 /plain-2"

    def test_what_was_hidden_once_is_hidden_in_other_words(self):
        show_address("https://h/token/QUIET-CANARY/zoo.zip")
        assert "QUIET" not in hide_secrets("no such path: /token/QUIET-CANARY/zoo.zip")


def test_user_is_split_from_the_address() -> None:
    assert split_user("http://a:b%40/c@h:1/x") == ("a:b%40/c", "http://h:1/x")
    assert split_user("http://h:1/x@y") == ("", "http://h:1/x@y")
    assert split_user("sqlite:///x.db") == ("", "sqlite:///x.db")
