"""Tensors and frames as bytes: everything comes back, nothing is executed."""

import io
import pickle
import warnings

import polars as pl
import pytest
import torch

from mzsane.store.serialisation import (
    load_tensor_file,
    load_tensors,
    load_torch,
    save_tensor_file,
    save_tensors,
    to_parquet,
)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
)
def test_tensors_keep_bits_order_shape_and_notes(dtype):
    values = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    tensors = {"z": values, "a": values.clone().T, "m.b": values[0, 0].clone(), "none": values[:0]}
    notes = {"epochs": [1, 2], "loss": float("inf"), "name": "ä"}
    loaded, loaded_notes = load_tensors(save_tensors(tensors, notes))
    assert list(loaded) == ["z", "a", "m.b", "none"]
    assert loaded_notes == notes
    for name, value in tensors.items():
        assert loaded[name].dtype == dtype
        assert loaded[name].shape == value.shape
        assert torch.equal(loaded[name], value)


def test_a_file_has_the_same_bytes_and_comes_back(tmp_path):
    tensors = {"z": torch.randn(3, 4).T, "a": torch.arange(5), "h": torch.zeros(7, dtype=torch.bfloat16)}
    save_tensor_file(tmp_path / "x", tensors, {"epochs": [1, 2]})
    assert (tmp_path / "x").read_bytes() == save_tensors(tensors, {"epochs": [1, 2]})
    loaded, notes = load_tensor_file(tmp_path / "x")
    assert notes == {"epochs": [1, 2]}
    assert list(loaded) == list(tensors)
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    loaded["a"][0] = 9  # what is changed in memory is not changed in the file
    assert load_tensor_file(tmp_path / "x")[0]["a"][0] == 0


def test_special_numbers_survive():
    value = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    loaded, notes = load_tensors(save_tensors({"x": value}))
    assert torch.equal(loaded["x"].view(torch.int32), value.view(torch.int32))
    assert notes == {}


def test_equal_content_gives_equal_bytes():
    one, other = torch.ones(2), torch.zeros(3)
    first = save_tensors({"a": one, "b": other}, {"p": 1, "q": 2})
    assert first == save_tensors({"a": one.clone(), "b": other.clone()}, {"q": 2, "p": 1})
    assert first != save_tensors({"b": other, "a": one}, {"p": 1, "q": 2})
    frame = pl.DataFrame({"step": [1, 2], "value": [0.5, None]})
    assert to_parquet(frame) == to_parquet(frame.clone())


def test_parquet_comes_back(tmp_path):
    frame = pl.DataFrame({"model": ["000000", "000001"], "loss": [0.5, float("inf")], "epoch": [1, None]})
    (tmp_path / "x.parquet").write_bytes(to_parquet(frame))
    assert pl.read_parquet(tmp_path / "x.parquet").equals(frame)


class Executes:
    """Unpickling this calls warnings.warn."""

    def __reduce__(self):
        return warnings.warn, ("code of a file was executed",)


def test_torch_file_cannot_execute_code(recwarn):
    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.arange(3)}, "step": 4, "evil": Executes()}, buffer)
    with pytest.raises(pickle.UnpicklingError):
        load_torch(buffer.getvalue())
    assert not [each for each in recwarn if "executed" in str(each.message)]


def test_torch_file_comes_back():
    state = {"model": {"w": torch.arange(3)}, "step": 4, "curves": [(1, "loss", 0.5)]}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    loaded = load_torch(buffer.getvalue())
    assert torch.equal(loaded["model"]["w"], torch.arange(3))
    assert (loaded["step"], loaded["curves"]) == (4, [(1, "loss", 0.5)])
