"""The catalogue of published zoos: complete, consistent, and honest about what is not known."""

import pytest

from mzsane.errors import ConfigError
from mzsane.fetch.catalog import CATALOG, catalog_table, find_entry


def test_records_are_those_that_are_published():
    records = {entry.name: entry.record for entry in CATALOG}
    assert len(records) == len(CATALOG) == len(set(records.values()))
    assert records["cifar10-cnn-large-seed"] == 6620869
    assert records["cifar10-cnn-sample"] == 13144018
    assert records["cifar100-resnet18-epoch60"] == 6977382
    assert records["mnist-sparsified"] == 7023335


def test_the_url_of_a_file_is_that_of_zenodo():
    url = find_entry("cifar10-cnn-sample").url
    assert url == "https://zenodo.org/records/13144018/files/cifar10_cnn_sample_ep21-25.zip"


def test_a_record_without_a_known_file_says_where_to_look():
    with pytest.raises(ConfigError, match=r"open https://zenodo\.org/records/6632086 and give the link"):
        find_entry("mnist").url  # noqa: B018


def test_an_unknown_name_lists_the_names():
    with pytest.raises(ConfigError, match=r"'minst' is neither .* catalogue: cifar10-cnn-large-seed, .*, mnist, "):
        find_entry("minst")


def test_the_table_has_a_line_a_zoo_and_never_guesses():
    text = catalog_table()
    for entry in CATALOG:
        (line,) = [line for line in text.splitlines() if line.startswith(f"{entry.name} ")]
        assert str(entry.record) in line
        assert entry.dataset in line
        assert (entry.file or "see record") in line
        assert (entry.licence or "see record") in line
        assert line.split()[-1] in {"[1]", "[2]"}
    assert "21 to 25" in text
    assert "arXiv 2209.14764" in text
    assert "None" not in text
