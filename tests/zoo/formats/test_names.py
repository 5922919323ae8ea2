"""What a path tells of model, epoch and run: checkpoints of one run are one model, and of one lineage."""

import pytest

from mzsane.config import TokensConfig
from mzsane.splits import assign_split
from mzsane.zoo.formats.loose_files import list_files
from mzsane.zoo.formats.names import read_name

RUNS = [
    "run{r}/checkpoint-{e}00/model",
    "run{r}/checkpoint-{e}00/pytorch_model",
    "run{r}_step_{e}000",
    "run{r}-step{e}",
    "run{r}/ckpt_{e:04d}",
    "trial_{r}/checkpoint_{e:06d}/model",
    "train_fn_{r}_lr=0.1_2024-01-01_10-00-0{r}/checkpoint_{e:06d}/checkpoint",
    "run{r}/epoch={e}-step={e}00",
    "run{r}/epoch={e:02d}-val_loss=0.{e}3",
    "run{r}/epoch_{e}_val_acc_0.9{e}",
    "run{r}/checkpoints/epoch={e}",
    "run{r}/iter_{e}",
    "run{r}/iter_{e}k",
    "run{r}/e{e}",
    "run{r}/it{e}",
    "global_step{e}00/run{r}",
    "run{r}/global_step{e}/mp_rank_00_model_states",
    "run{r}/model.ckpt-{e}00",
    "run{r}/snapshot_{e}",
    "run{r}/weights_at_step_0{e}",
    "epoch_{e}/run{r}",
    "net_ep{e}_seed{r}",
    "Run{r}/Epoch {e}",
    "run{r}/cp-000{e}",
]


@pytest.mark.parametrize("form", RUNS)
def test_checkpoints_of_one_run_are_one_model(form):
    files = [f"{form.format(r=run, e=epoch)}.pt" for run in range(6) for epoch in range(1, 5)]
    listing = list_files(sorted(files), None)
    models = {entry.model for entry in listing.entries}
    assert len(models) == 6
    for model in models:
        epochs = [entry.epoch for entry in listing.entries if entry.model == model]
        assert len(set(epochs)) == 4
        assert epochs == sorted(epochs)
    assert len({entry.lineage for entry in listing.entries}) == 6
    assert not listing.notes


@pytest.mark.parametrize(
    "path",
    [
        *(
            "deep2",
            "resnet18",
            "vit_b_16",
            "lr=1e-5/model",
            "lr1e-5",
            "recipe3",
            "steep4",
            "model_v2",
            "e2e_model",
            "m_3",
        ),
        *("123", "epochs=100/seed_3", "lr_step_10/m1", "max_epoch=50_seed3", "warmup_steps_100/net", "report10"),
    ],
)
def test_other_numbers_are_parts_of_a_name(path):
    parts = read_name(path)
    assert (parts.model, parts.epoch) == (path, None)


def test_what_tells_most_is_taken():
    assert read_name("run/checkpoint_3/epoch_7").epoch == 7
    assert read_name("run/step=300-epoch=2").epoch == 2
    assert read_name("epoch_5/step_100").epoch == 100  # what is nearest to the file
    assert read_name("run/checkpoint_3/epoch_7").model == "run"
    assert read_name("checkpoint-5").model == "model"


def test_several_checkpoints_an_epoch_are_told_apart_by_their_steps():
    files = ["a/epoch=1-step=10.pt", "a/epoch=1-step=20.pt", "b/epoch=1-step=10.pt", "b/epoch=2-step=20.pt"]
    assert [(entry.model, entry.epoch) for entry in list_files(files, None).entries] == [
        *(("a", 10), ("a", 20), ("b", 1), ("b", 2))
    ]


@pytest.mark.parametrize("form", ["run{r}/{k}", "run{r}/model_{k}", "run{r}/{k}/model", "run{r}_{k}", "run{r}/{k}-v1"])
def test_best_and_last_are_of_the_run_beside_them(form):
    kinds = ["best", "last", "final", "ema", "latest", "swa"]
    files = [f"{form.format(r=run, k=kind)}.pt" for run in range(8) for kind in kinds]
    files += [f"{form.format(r=run, k=f'epoch_{epoch}')}.pt" for run in range(8) for epoch in range(3)]
    shares = TokensConfig().shares
    lineages = {}
    for entry in list_files(files, None).entries:
        lineages.setdefault(entry.file[:4], set()).add(entry.lineage)
    assert all(len(found) == 1 for found in lineages.values())
    assert {assign_split(found.pop(), shares, 0) for found in lineages.values()} == {"train", "val", "test"}


@pytest.mark.parametrize("form", ["run{r}/{e}", "run{r}/w{e}", "run{r}_{e}", "run{r}/part{e}/model"])
def test_what_cannot_be_told_is_said(form):
    files = [f"{form.format(r=run, e=epoch)}.pt" for run in range(6) for epoch in range(4)]
    (note,) = list_files(files, None).notes
    assert note.startswith("24 models in 6 ")
    assert "whose names differ in a number" in note
    assert "set pattern" in note
    assert not list_files(files, r"run(?P<model>\d)\D+(?P<epoch>\d)").notes


@pytest.mark.parametrize("form", ["m{}", "model_{}/weights", "run{}", "lr=0.1/seed_{}", "trainable_{}_seed={}"])
def test_ordinary_zoos_are_not_doubted(form):
    assert not list_files([f"{form.format(number, number)}.pt" for number in range(20)], None).notes
    several = [f"{lr}/seed_{seed}.pt" for lr in ("a", "b") for seed in range(4)]
    assert not list_files(several, None).notes


def test_an_archive_with_a_folder_around_all_says_the_same():
    files = [f"a/run{run}/{kind}.pt" for run in range(4) for kind in ("best", "epoch_1")] + ["b/m0.pt"]
    plain = [(entry.model, entry.epoch, entry.lineage) for entry in list_files(files, None).entries]
    packed = list_files([f"zoo/v1/{file}" for file in files], None).entries
    assert [(entry.model, entry.epoch, entry.lineage) for entry in packed] == plain


@pytest.mark.parametrize("path", ["größe6", "modèle-é3", "школаep3", "数e1数"])
def test_words_of_other_alphabets_are_words(path):
    assert read_name(path).epoch is None
