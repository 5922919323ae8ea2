"""Tables as people write them: joined to the right checkpoints with the right numbers, or refused in one line."""

import json
import math

import polars as pl
import pytest

from mzsane.errors import ConfigError
from mzsane.fetch.sources import FolderSource
from mzsane.zoo.formats.loose_files import list_files
from mzsane.zoo.formats.metadata import apply_metadata

FILES = ["001.pt", "002.pt", "run/003.pt"]


def join(tmp_path, text, files=FILES, suffix=".csv"):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / f"t{suffix}").write_bytes(data)
    source = FolderSource(str(tmp_path), 10**7)
    return apply_metadata(list_files(files, None), source, [*files, f"t{suffix}"], f"t{suffix}")


def show(listing, metric="test_accuracy"):
    return {entry.file: entry.metrics.get(metric) for entry in listing.entries}


@pytest.mark.parametrize(
    ("cell", "number"), [("91%", 0.91), (" 0.91 ", 0.91), ('"0,91"', 0.91), ("9.1e-1", 0.91), ('"1,234.5"', 1234.5)]
)
def test_text_that_is_a_number_is_read_as_one(cell, number, tmp_path):
    assert show(join(tmp_path, f"file,test_acc\n001.pt,{cell}\n"))["001.pt"] == pytest.approx(number)


@pytest.mark.parametrize("cell", ["N/A", "good", '"1,234"', "0x1", "true", "-", "1.2.3"])
@pytest.mark.parametrize("name", ["test_acc", "train_loss", "ggap"])
def test_a_metric_that_is_no_number_is_an_error_with_its_first_cell(cell, name, tmp_path):
    text = f"file,{name}\n001.pt,0.5\n002.pt,{cell}\nrun/003.pt,also bad\n"
    reason = (
        rf"t\.csv: {name} in row 2 \(002\.pt\) is '{cell.strip(chr(34))}', which is not, or not certainly, a number"
    )
    with pytest.raises(ConfigError, match=reason):
        join(tmp_path, text)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_cell_of_another_kind_is_an_error_too(suffix, tmp_path):
    rows = [{"file": "001.pt", "test_acc": [0.9]}, {"file": "002.pt", "test_acc": [0.8]}]
    if suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
        text = (tmp_path / "t.parquet").read_bytes()
    else:
        text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    with pytest.raises(ConfigError, match=r"test_acc in row 1 \(001\.pt\) is \[0\.9\]"):
        join(tmp_path, text, suffix=suffix)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_nan_and_infinity_stay_what_they_are(suffix, tmp_path):
    losses = {"001.pt": math.nan, "002.pt": math.inf, "run/003.pt": 0.5}
    rows = [{"file": file, "test_loss": loss} for file, loss in losses.items()]
    pl.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
    text = {
        ".csv": "file,test_loss\n001.pt,NaN\n002.pt,inf\nrun/003.pt,0.5\n",
        ".json": json.dumps(rows),
        ".jsonl": "\n".join(map(json.dumps, rows)),
        ".parquet": (tmp_path / "t.parquet").read_bytes(),
    }[suffix]
    found = show(join(tmp_path, text, suffix=suffix), "test_loss")
    assert math.isnan(found.pop("001.pt"))
    assert found == {"002.pt": math.inf, "run/003.pt": 0.5}


def test_identifiers_are_text(tmp_path):
    listing = join(tmp_path, "model,test_acc,dataset\n001,0.1,07\n002,0.2,8\nrun/003,0.3,x\n")
    assert show(listing) == {"001.pt": 0.1, "002.pt": 0.2, "run/003.pt": 0.3}
    assert [entry.dataset for entry in listing.entries] == ["07", "8", "x"]
    assert [entry.model for entry in join(tmp_path, "file,model\n001.pt,0007\n").entries if entry.file == "001.pt"] == [
        "0007"
    ]


@pytest.mark.parametrize(
    "path",
    ["run/003.pt", "run\\003.pt", "./run/003.pt", ".\\run\\003.pt", "run//003.pt", "run/x/../003.pt", " run/003.pt"],
)
def test_a_path_is_the_same_however_it_is_written(path, tmp_path):
    assert show(join(tmp_path, f"file,test_acc\n{path},0.9\n"))["run/003.pt"] == 0.9
    absolute = f"file,test_acc\n{tmp_path}/run/003.pt,0.9\n"
    assert show(join(tmp_path, absolute))["run/003.pt"] == 0.9


def test_letters_are_the_same_in_both_their_forms(tmp_path):
    assert show(join(tmp_path, "file,test_acc\ngr\u00f6\u00dfe.pt,0.9\n", ["gro\u0308\u00dfe.pt"])) == {
        "gro\u0308\u00dfe.pt": 0.9
    }


def test_files_whose_names_differ_in_such_ways_stay_apart(tmp_path):
    files = ["a/b.pt", "a\\b.pt"]
    listing = join(tmp_path, "file,test_acc\na\\b.pt,0.9\n", files)
    assert show(listing) == {"a/b.pt": None, "a\\b.pt": 0.9}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,test_acc\n001.pt,0.9\n./001.pt,0.1\n", r"two rows of 001\.pt, 1 and 2"),
        ("model,test_acc\n001,0.9\n002,0.8\n001,0.1\n", "two rows of 001, 1 and 3"),
        ("model,epoch,test_acc\n001,3,0.9\n001,3.0,0.1\n", "two rows of 001 epoch 3"),
        ("file,test_acc,test_acc\n001.pt,0.9,0.1\n", "the column test_acc twice"),
        ("file,test_acc,test_accuracy\n001.pt,0.9,0.1\n", "test_accuracy twice, as 'test_acc' and 'test_accuracy'"),
        ("File,test_acc\n001.pt,0.9\n", "a column 'File': call it 'file'"),
        ("file,Split\n001.pt,test\n", "a column 'Split': call it 'split'"),
        ("file, epoch\n001.pt,1\n", "a column ' epoch': call it 'epoch'"),
        ("file,test_acc\n,0.9\n", "row 1 of metadata t.csv has no file"),
        ("file,test_acc\n7.pt,0.9\n", r"no row of metadata t\.csv belongs .* is of file '7\.pt', the first .* 001\.pt"),
        ("model,test_acc\n1,0.9\n", "the first row is of model '1', epoch None, the first checkpoint is '001'"),
        ("file,test_acc\n", "no rows"),
        ("file,epoch\n001.pt,nan\n", "whole numbers"),
        ("file,epoch\n001.pt,inf\n", "whole numbers"),
        ("file,epoch\n001.pt,1e300\n", "whole numbers"),
    ],
)
def test_a_table_that_can_be_misread_is_refused(text, reason, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        join(tmp_path, text)


@pytest.mark.parametrize(
    "text", ['{"file": "001.pt"}', '["001.pt"]', "[]", "[" * 10**5, '[{"file": "a", "file": "b"}]']
)
def test_json_that_is_no_table_is_refused(text, tmp_path):
    with pytest.raises(ConfigError, match=r"metadata t\.json cannot be read"):
        join(tmp_path, text, suffix=".json")


def test_other_separators_and_marks_are_read(tmp_path):
    assert show(join(tmp_path, "file;test_acc\n001.pt;0,91\n"))["001.pt"] == 0.91
    assert show(join(tmp_path, "file\ttest_acc\n001.pt\t0.91\n"))["001.pt"] == 0.91
    assert show(join(tmp_path, b"\xef\xbb\xbffile,test_acc\r\n001.pt,0.91\r\n"))["001.pt"] == 0.91
    assert show(join(tmp_path, '\ufeff[{"file": "001.pt", "test_acc": 0.91}]', suffix=".json"))["001.pt"] == 0.91


def test_other_columns_are_numbers_where_all_of_them_are(tmp_path):
    text = "file,lr,layers,tag,code,note\n001.pt,1e-3,3,a,007,true\n002.pt,0.5,4,5,8,false\nrun/003.pt,.1,,,9,true\n"
    recipes = [dict(entry.recipe) for entry in join(tmp_path, text).entries]
    assert recipes == [
        {"lr": 1e-3, "layers": 3, "tag": "a", "code": "007", "note": True},
        {"lr": 0.5, "layers": 4, "tag": "5", "code": "8", "note": False},
        {"lr": 0.1, "code": "9", "note": True},
    ]


def test_one_model_in_two_splits_is_refused(tmp_path):
    files = ["m0_epoch_1.pt", "m0_epoch_2.pt", "m1_epoch_1.pt"]
    text = "file,split\nm0_epoch_1.pt,train\nm0_epoch_2.pt,{}\nm1_epoch_1.pt,test\n"
    assert [entry.split for entry in join(tmp_path, text.format("training"[:5]), files).entries] == [
        *("train", "train", "test")
    ]
    with pytest.raises(ConfigError, match=r"puts model 'm0' into train and test"):
        join(tmp_path, text.format("test"), files)
    with pytest.raises(ConfigError, match="puts model 'x' into val and test"):
        join(tmp_path, "file,model,split\n001.pt,x,dev\n002.pt,x,test\n")


def test_metrics_by_model_are_of_no_epoch_in_particular(tmp_path):
    files = ["m0_epoch_1.pt", "m0_epoch_2.pt"]
    with pytest.raises(ConfigError, match="by model, and model 'm0' has 2 checkpoints: add a column epoch"):
        join(tmp_path, "model,test_acc\nm0,0.9\n", files)
    listing = join(tmp_path, "model,epoch,test_acc\nm0,2.0,0.9\n", files)
    assert show(listing) == {"m0_epoch_1.pt": None, "m0_epoch_2.pt": 0.9}


def test_a_row_tells_the_epoch_that_a_path_does_not(tmp_path):
    listing = join(tmp_path, "model,epoch,test_acc\n001,3.0,0.9\n002,,0.8\n")
    assert [(entry.model, entry.epoch) for entry in listing.entries] == [("001", 3), ("002", None), ("run/003", None)]
    assert show(listing) == {"001.pt": 0.9, "002.pt": 0.8, "run/003.pt": None}
