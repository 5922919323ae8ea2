"""Which tensors of a file are the network: containers, several networks, lists, and what is no weight."""

from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mzsane.errors import ConfigError
from mzsane.zoo.formats.checkpoint import CheckpointReader
from mzsane.zoo.formats.states import Choice

LIMIT = 50_000_000
ADAM = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(3, 3)}}, "param_groups": [{"lr": 0.1}]}


def make(seed, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)).state_dict()


def read(data, **choice):
    reader = CheckpointReader(LIMIT, Choice(**choice))
    for _ in range(2):  # from the third time on, a pickle is known by heart
        reader.read(data)
    return reader.read(data)


def assert_same(state, expected):
    assert list(state.tensors) == list(expected)
    assert all(torch.equal(state.tensors[name], value) for name, value in expected.items())


FIRST = {  # the network is make(0)
    "own and averaged": lambda: {"model": make(0), "ema": make(1), "epoch": 3},
    "averaged in timm's way": lambda: {"state_dict": make(0), "state_dict_ema": make(1)},
    "averaged in BasicSR's way": lambda: {"params": make(0), "params_ema": make(1)},
    "averaged alone": lambda: {"model_ema": make(0), "epoch": 1},
    "beside an optimizer": lambda: {"optimizer": ADAM, "model": make(0), "loss": torch.tensor(0.3)},
    "under a name of its own": lambda: {"generator_weights": make(0), "optim_g": ADAM, "epoch": 3},
    "beside masks": lambda: {"model": make(0), "masks": {"0.weight": torch.ones(4, 3)}},
    "beside a criterion": lambda: {"net": make(0), "criterion": {"weight": torch.ones(3)}},
    "with its own metadata": lambda: {**make(0), "_extra": 3, "lr": 0.1},
    "a list of one": lambda: {"models": [make(0)]},
    "FSDP": lambda: {f"_fsdp_wrapped_module.{n.replace('.', '._fsdp_wrapped_module.')}": v for n, v in make(0).items()},
    "compiled parts": lambda: {n.replace(".", "._orig_mod."): v for n, v in make(0).items()},
    "an averaged model": lambda: {"n_averaged": torch.tensor(7), **{f"module.{n}": v for n, v in make(0).items()}},
    "twice parallel": lambda: {f"module.module.{n}": v for n, v in make(0).items()},
}


@pytest.mark.parametrize("kind", FIRST)
def test_the_network_is_found(kind, to_bytes):
    (found,) = read(to_bytes(FIRST[kind]()))
    assert_same(found, make(0))


SEVERAL = {
    "a GAN": (lambda: {"netG": make(0), "netD": make(1)}, "netG, netD"),
    "with a tensor": (lambda: {"netG": make(0), "netD": make(1), "z": torch.ones(4)}, r"netG, netD .* tensors z"),
    "one with a tensor": (lambda: {"netG": make(0), "best_loss": torch.tensor(0.3)}, r"netG .* tensors best_loss"),
    "in a container": (lambda: {"state_dict": {"encoder": make(0), "decoder": make(1)}}, "state_dict.encoder, state_d"),
    "beside the usual name": (lambda: {"model": make(0), "discriminator": make(1)}, "model, discriminator"),
    "three": (lambda: {"a": make(0), "b": make(1), "c": [make(2)]}, "a, b, c"),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_networks_are_named(kind, to_bytes):
    content, names = SEVERAL[kind]
    with pytest.raises(ConfigError, match=rf"^several networks: the file has .*{names}.*: set key"):
        read(to_bytes(content()))


def test_a_key_chooses(to_bytes):
    content = {
        "netG": make(0),
        "deep": {"x.y": make(1), "list": [make(2), make(3)]},
        "all": {f"student.{n}": v for n, v in make(4).items()} | {f"teacher.{n}": v for n, v in make(5).items()},
        "epoch": 5,
        "loose": torch.ones(3),
    }
    for key, seed in (("netG", 0), ("deep.x.y", 1), ("deep.list.1", 3), ("all.student", 4), ("all.teacher", 5)):
        (found,) = read(to_bytes(content), key=key)
        assert_same(found, make(seed))
        assert found.epoch == 5
    for key in ("netX", "netG.3", "loose", "deep.list.7", "epoch"):
        with pytest.raises(ConfigError, match=r"^no tensors"):
            read(to_bytes(content), key=key)
    flat = {f"backbone.{n}": v for n, v in make(0).items()} | {"head.weight": torch.ones(2, 2)}
    (found,) = read(safetensors.torch.save(flat), key="backbone")
    assert_same(found, make(0))


def test_a_list_is_epochs_or_models_only_if_it_is_said(to_bytes):
    data = to_bytes({"checkpoints": [make(0), make(1)]})
    with pytest.raises(ConfigError, match=r"list of 2: set lists to epochs"):
        read(data)
    assert len(read(data, lists=True)) == 2


QUANTISED = {
    "values": lambda: {"0.weight": torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)},
    "by channel": lambda: {
        "w": torch.quantize_per_channel(torch.ones(2, 3), torch.ones(2), torch.zeros(2), 0, torch.qint8)
    },
    "dynamic": lambda: {
        "fc.scale": torch.tensor(1.0),
        "fc.zero_point": torch.tensor(0),
        "fc._packed_params.dtype": torch.qint8,
        "fc._packed_params._packed_params": (torch.ones(2, 3), None),
    },
    "eight bits": lambda: {"fc.weight": torch.ones(4, 4, dtype=torch.int8), "fc.SCB": torch.ones(4)},
    "whole numbers": lambda: {"fc.weight": torch.ones(4, 4, dtype=torch.int8), "fc.bias": torch.ones(4)},
    "four bits": lambda: {"fc.weight": torch.ones(8, 1), "fc.weight.absmax": torch.ones(2)},
    "GPTQ": lambda: {"fc.qweight": torch.ones(4, 4, dtype=torch.int32), "fc.scales": torch.ones(4)},
    "eight-bit floats": lambda: {
        "fc.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "fc.weight_scale_inv": torch.ones(1),
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_values_are_refused_with_advice(kind, to_bytes):
    with pytest.raises(ConfigError, match=r"^quantised: .*before its quantisation"):
        read(to_bytes(QUANTISED[kind]()))


ODD = {
    "meta": (lambda: {**make(0), "0.bias": torch.empty(4, device="meta")}, "on meta"),
    "all meta": (lambda: {n: v.to("meta") for n, v in make(0).items()}, "on meta"),
    "sparse": (lambda: {**make(0), "x": torch.eye(3).to_sparse()}, "sparse_coo"),
    "compressed": (lambda: {**make(0), "x": torch.eye(3).to_sparse_csr()}, "no plain numbers|cannot be read|code"),
    "complex": (lambda: {**make(0), "x": torch.ones(2, dtype=torch.complex64)}, "complex64"),
    "whole numbers": (lambda: {"x": torch.ones(3, 3, dtype=torch.int64)}, "no weight"),
    "empty": (lambda: {"x": torch.empty(0, 3)}, "no weight"),
    "single numbers": (lambda: {"loss": torch.tensor(0.3), "accuracy": torch.tensor(0.9)}, "only single numbers"),
    "flat parameters": (lambda: {"_fsdp_wrapped_module._flat_param": torch.ones(9)}, "FSDP"),
    "a large epoch": (lambda: {"epoch": 10**12, "model": make(0)}, "no epoch"),
    "a script": (lambda: None, ""),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "a script"])
def test_odd_tensors_are_refused_each_time(kind, to_bytes):
    make_content, reason = ODD[kind]
    reader = CheckpointReader(LIMIT)
    for _ in range(4):
        with pytest.raises(ConfigError, match=reason):
            reader.read(to_bytes(make_content()))


def test_a_script_says_what_to_save(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "m.pt"))
    with pytest.raises(ConfigError, match="TorchScript"):
        read((tmp_path / "m.pt").read_bytes())


def test_views_and_empty_parts_are_kept(to_bytes):
    base = torch.arange(24.0).reshape(4, 6)
    state = OrderedDict(weight=base[:, ::2], other=base.t()[1], none=torch.empty(0, 3), flag=torch.tensor([True]))
    (found,) = read(to_bytes(state))
    assert_same(found, state)


def test_headers_of_all_lengths_are_safetensors():
    lengths = set()
    for extra in range(0, 2100, 4):
        data = safetensors.torch.save(make(0), metadata={"note": "x" * extra})
        lengths.add(int.from_bytes(data[:8], "little"))
        assert len(read(data)[0].tensors) == 4
    assert {0x80, 0x04, 0x50 + 0} & {length % 256 for length in lengths}
    assert any(length % 256 == 0x80 for length in lengths)


def test_a_pickle_needs_a_protocol_that_is_known():
    for second in (0, 6, 255):
        with pytest.raises(ConfigError, match=r"^no checkpoint"):
            read(bytes([0x80, second]) + b"}q\x00.")


def test_formats_of_others_are_named():
    for start, told in (
        (b"\x89HDF\r\n", "HDF5"),
        (b"GGUF\x03", "GGUF"),
        (b"\x1f\x8b\x08", "unpack"),
        (b"version https://git-lfs", "git lfs pull"),
    ):
        with pytest.raises(ConfigError, match=told):
            read(start + bytes(60))


def test_arrays_without_dimensions_stay_so(tmp_path):
    np.savez(tmp_path / "m.npz", **{"w": np.ones((2, 3), dtype=np.float32, order="F"), "count": np.array(7)})
    (found,) = read((tmp_path / "m.npz").read_bytes())
    assert found.tensors["count"].shape == ()
    assert found.tensors["w"].shape == (2, 3)


def test_names_that_share_memory_are_filled_in(tmp_path):
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    safetensors.torch.save_model(network, str(tmp_path / "m.safetensors"))
    (found,) = read((tmp_path / "m.safetensors").read_bytes())
    assert found.tensors.keys() == network.state_dict().keys()
    assert torch.equal(found.tensors["0.weight"], found.tensors["1.weight"])
