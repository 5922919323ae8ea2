"""Checkpoint files become finite float32 tensors, by content; whatever else they are, the reason is said."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

from mzsane.errors import ConfigError
from mzsane.fetch.zip_members import list_members
from mzsane.store.serialisation import load_torch
from mzsane.zoo.formats.checkpoint import CheckpointReader
from mzsane.zoo.formats.states import Choice
from mzsane.zoo.formats.torch_files import TorchFiles

LIMIT = 50_000_000


def read(data, times=1, limit=LIMIT, **choice):
    """Read a file, perhaps several times: from the third time on, the pickle is known by heart."""
    reader = CheckpointReader(limit, Choice(**choice))
    for _ in range(times - 1):
        reader.read(data)
    return reader.read(data)


def save_npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype, name


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "npz"])
def test_every_form_gives_the_same_tensors(form, make_state, to_bytes):
    state = make_state(1)
    data = {
        "zip": lambda: to_bytes(state),
        "legacy": lambda: to_bytes(state, _use_new_zipfile_serialization=False),
        "safetensors": lambda: safetensors.torch.save(dict(state)),
        "npz": lambda: save_npz(**{name: value.numpy() for name, value in state.items()}),
    }[form]()
    for times in (1, 2, 3):
        (found,) = read(data, times)
        assert_same(found.tensors, state)


WRAPPERS = {
    "state_dict": lambda s: {"state_dict": s, "best_prec1": 91.7},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}},
    "net": lambda s: {"net": s, "acc": 0.9, "loss": torch.tensor(0.3)},
    "model_state_dict": lambda s: {"optimizer_state_dict": {"state": {}}, "model_state_dict": s},
    "params": lambda s: {"params": s},
    "twice": lambda s: {"checkpoint": {"model": s}, "config": {"lr": 0.1}},
    "module": lambda s: OrderedDict((f"module.{name}", value) for name, value in s.items()),
    "compiled": lambda s: {"model": {f"_orig_mod.module.{name}": value for name, value in s.items()}},
    "parameters": lambda s: {name: torch.nn.Parameter(value) for name, value in s.items()},
    "list": lambda s: [s],
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_seen_through(wrapper, make_state, to_bytes):
    state = make_state(1)
    for times in (1, 3):
        (found,) = read(to_bytes(WRAPPERS[wrapper](state)), times)
        assert_same(found.tensors, state)


def test_a_list_holds_several_networks(make_state, to_bytes):
    states = [make_state(seed) for seed in range(3)]
    for times in (1, 3):
        found = read(to_bytes({"models": states}), times, lists=True)
        for one, state in zip(found, states, strict=True):
            assert_same(one.tensors, state)


def test_an_epoch_in_the_file_is_found(make_state, to_bytes):
    assert read(to_bytes({"epoch": 12, "state_dict": make_state(1)}))[0].epoch == 12
    assert read(to_bytes({"epoch": True, "state_dict": make_state(1)}))[0].epoch is None
    several = [{"epoch": 0, "model": make_state(1)}, {"epoch": 7, "model": make_state(2)}]
    assert [state.epoch for state in read(to_bytes(several), 3, lists=True)] == [0, 7]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype, to_bytes):
    weight = torch.tensor([[1.5, -2.0]], dtype=dtype)
    for data in (to_bytes({"w": weight}), safetensors.torch.save({"w": weight})):
        assert_same(read(data, 3)[0].tensors, {"w": weight.float()})


def test_counters_stay_whole(to_bytes):
    state = {"w": torch.ones(2), "bn.num_batches_tracked": torch.tensor(2**40)}
    assert_same(read(to_bytes(state), 3)[0].tensors, state)


def test_views_of_shared_memory_are_right(to_bytes):
    base = torch.arange(24.0).reshape(4, 6)
    state = {"transposed": base.t(), "row": base[2], "strided": base[1:3, ::2], "tied": base, "scalar": base[3, 5]}
    for times in (1, 2, 3, 4):
        assert_same(read(to_bytes(state), times)[0].tensors, state)


def test_known_pickles_are_not_unpickled_again(make_state, to_bytes, monkeypatch):
    files = TorchFiles()
    calls = []
    monkeypatch.setattr("mzsane.zoo.formats.torch_files.load_torch", lambda data: calls.append(1) or load_torch(data))
    for seed in range(20):
        state = make_state(seed)
        data = to_bytes(state)
        (found,) = files.read(data, list(list_members(io.BytesIO(data))))
        assert_same(found.tensors, state)
    assert len(calls) == 2


def test_the_same_pickle_with_other_records_is_not_taken_for_known(make_state, to_bytes):
    data = to_bytes(make_state(1))
    grown = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(grown, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + (bytes(400) if name.endswith("data/0") else b""))
    reader = CheckpointReader(LIMIT)
    for _ in range(3):
        reader.read(data)
    with pytest.raises(ConfigError, match="damaged"):
        reader.read(grown.getvalue())


def test_tiny_records_are_left_to_torch(to_bytes):
    state = {"flag": torch.tensor(True), "w": torch.ones(3), "empty": torch.ones(0, 4)}
    assert_same(read(to_bytes(state), 4)[0].tensors, state)


def test_safetensors_get_the_order_of_layers(make_state):
    state = {f"layer.{number}.{part}": torch.ones(1) for number in (1, 2, 10) for part in ("weight", "bias")}
    assert list(read(safetensors.torch.save(state))[0].tensors) == list(state)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain", "npz", "second"])
def test_nothing_in_a_pickle_is_run(form, tmp_path, make_state, to_bytes):
    witness = tmp_path / "witness"
    evil = {"state_dict": make_state(1), "extra": Evil(f"touch {witness}")}
    if form == "plain":
        data = pickle.dumps(evil["extra"], protocol=2)
    elif form == "npz":
        data = save_npz(w=np.array([Evil(f"touch {witness}")], dtype=object))
    else:
        data = to_bytes(evil, _use_new_zipfile_serialization=form != "legacy")
    reader = CheckpointReader(LIMIT)
    for _ in range(3 if form == "second" else 1):
        with pytest.raises(
            ConfigError, match="^code: .*system" if form != "npz" else "^truncated or damaged: .*pickle"
        ):
            reader.read(data)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Evil(f"touch {witness}")))
    assert witness.exists(), "the test's pickle does what it is feared for"


def with_value(state, value):
    changed = OrderedDict((name, tensor.clone()) for name, tensor in state.items())
    next(iter(changed.values())).view(-1)[7] = value
    return changed


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_rejected(value, make_state, to_bytes):
    with pytest.raises(ConfigError, match=r"not finite: (NaN|infinite).* module_list.0.weight"):
        read(to_bytes(with_value(make_state(1), value)))
    with pytest.raises(ConfigError, match="not finite"):
        read(safetensors.torch.save({"w": torch.tensor([1e300], dtype=torch.float64)}))


def test_huge_but_finite_weights_are_kept(to_bytes):
    state = {"w": torch.full((10,), 3e38)}
    assert_same(read(to_bytes(state))[0].tensors, state)


def bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(LIMIT + 1))
    return buffer.getvalue()


BAD = {
    "empty": (lambda save: b"", "^empty"),
    "text": (lambda save: b"<html>Not found</html>", "^no checkpoint"),
    "number": (lambda save: save(3), "^no tensors: .*int"),
    "strings": (lambda save: save({"w": "abc", "b": [1, 2]}), "^no tensors: .*w, b"),
    "optimizer": (lambda save: save({"state": {0: {"step": torch.ones(1)}}, "param_groups": []}), "^no tensors"),
    "whole numbers": (lambda save: save({"w": torch.ones(3, dtype=torch.int32)}), "^no tensors"),
    "complex": (lambda save: save({"w": torch.ones(3, dtype=torch.complex64)}), "^no plain numbers"),
    "sparse": (lambda save: save({"w": torch.ones(3).to_sparse()}), "^no plain numbers"),
    "huge view": (lambda save: save({"w": torch.ones(1).expand(10**12)}), "^too large"),
    "text array": (lambda save: save_npz(w=np.array(["a", "b"])), "^no plain numbers"),
    "npz bomb": (lambda save: bomb(), "^too large"),
    "deep": (lambda save: save([[[[[[{"w": torch.ones(1)}]]]]]]), "^no tensors"),
    "mixed list": (lambda save: save([{"w": torch.ones(1)}, {"lr": 0.1}]), "^no tensors"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_used_says_why(kind, to_bytes):
    make, reason = BAD[kind]
    with pytest.raises(ConfigError, match=reason) as caught:
        read(make(to_bytes))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "npz"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_truncated_files_are_rejected(form, share, make_state, to_bytes):
    state = make_state(1)
    data = {
        "zip": lambda: to_bytes(state),
        "legacy": lambda: to_bytes(state, _use_new_zipfile_serialization=False),
        "safetensors": lambda: safetensors.torch.save(dict(state)),
        "npz": lambda: save_npz(**{name: value.numpy() for name, value in state.items()}),
    }[form]()
    with pytest.raises(ConfigError, match=r"truncated|no checkpoint|code"):
        read(data[: int(len(data) * share)])


def test_a_flipped_bit_in_a_record_is_noticed(make_state, to_bytes):
    state = make_state(1)
    data = bytearray(to_bytes(state))
    at = bytes(data).find(state["module_list.0.weight"].numpy().tobytes())
    data[at + 5] ^= 1
    reader = CheckpointReader(LIMIT)
    for _ in range(3):
        reader.read(to_bytes(make_state(2)))
    with pytest.raises(ConfigError, match="checksum"):
        reader.read(bytes(data))
