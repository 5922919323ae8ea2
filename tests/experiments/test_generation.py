"""The generation experiment: what it reads by default, and what it says of a curve."""

import json

import pytest
import torch

from experiments import draws
from experiments.bench import Bench
from experiments.generation import Measures, interpolate_at, join, list_curves, summarise

SMALL = {
    "d_model": 16,
    "heads": 1,
    "layers": 1,
    "latent_dim": 8,
    "steps": 4,
    "batch_size": 4,
    "precision": "float32",
    "train_fraction": 0.5,
    "validation_fraction": 0.34,
}


def test_accuracy_at_a_novelty_is_between_the_points_of_a_curve():
    points = [{"novelty": x, "accuracy": y} for x, y in ((0.2, 90.0), (0.6, 50.0), (0.9, 20.0))]
    assert interpolate_at(points, 0.5, "accuracy") == pytest.approx(60.0)
    assert interpolate_at(points, 1.0, "accuracy") == 20.0  # nearly there
    assert interpolate_at(points, 1.2, "accuracy") is None
    assert interpolate_at(points[:1], 0.5, "accuracy") is None


def test_what_was_measured_curve_by_curve_is_joined_if_it_is_of_the_same_models(tmp_path):
    files = []
    for number, split in enumerate(("val", "val", "test")):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps({"split": split, "rows": [number], "points": []}))
    assert join(files[:2]) == {"split": "val", "rows": [0, 1], "points": []}
    with pytest.raises(SystemExit, match="not of the same models"):
        join(files)


@pytest.fixture(scope="module")
def bench(tiny_zoo_config, make_store):
    return Bench(tiny_zoo_config, SMALL, samples=4, slow_samples=2, seed=0, store=make_store())


def test_validation_is_read_by_default_and_test_when_it_is_final(bench):
    images, table = bench.images, bench.table
    for final, split in ((False, "val"), (True, "test")):
        measures = Measures(bench, final, 1000)
        assert measures.split == split
        assert measures.held_out["held_out_models"] == len(table.pick_rows(split, last_epochs=1))
        held_out_HP = table.load(table.pick_rows(split, last_epochs=1))
        correct = 0
        for flat_P in held_out_HP:
            bench.network.load_state_dict(bench.layout.unflatten(flat_P), strict=False)
            with torch.no_grad():
                classes_N = bench.network.eval()(images.splits[split].images_NCHW).argmax(dim=1)
            correct += int((classes_N == images.splits[split].labels_N).sum())
        count = len(held_out_HP) * len(images.splits[split].labels_N)
        assert measures.held_out["held_out_accuracy"] == pytest.approx(100 * correct / count)


def test_noise_is_as_far_from_its_anchor_as_the_sample_is(bench):
    nearest_S, distance_S = bench.find_nearest(2.0)
    for made in (
        draws.draw_layer_noise(bench, 2.0),
        draws.draw_flat_noise(bench, "images", 2.0),
        draws.draw_flat_noise(bench, "none", 2.0),
    ):
        torch.testing.assert_close((made.flat_SP - bench.anchors_AP[nearest_S]).norm(dim=1), distance_S)
    decoded = draws.draw_decoded_noise(bench, 2.0).flat_SP
    assert ((decoded - bench.anchors_AP[nearest_S]).norm(dim=1) >= 0.999 * distance_S).all()


def test_rows_say_what_was_seen_and_paid_beside_held_out_models(bench):
    measures = Measures(bench, False, 1000)
    curves = {(curve.name, curve.steps): curve for curve in list_curves(bench, [2])}
    expected = {
        ("joint", 0): ("none", 0, True),
        ("decoded noise", 0): ("none", 0, True),
        ("flat noise on images", 0): ("images", 0, False),
        ("best model", 0): ("labels", 0, False),
        ("joint, guided", 2): ("images", 2, True),
        ("random initialisation, guided", 2): ("images", 2, False),
    }
    for name, (sees, steps, decoded) in expected.items():
        width, draw = curves[name].points[0]
        point = measures.measure(curves[name], width, draw())
        assert (point["class"], point["gradient_steps"]) == (sees, steps)
        assert (point["sampling_novelty"] is not None) == decoded
        assert (point["image_passes"] > 0) == (sees == "images")
        row = summarise([point])
        assert row["held_out_accuracy"] == measures.held_out["held_out_accuracy"]


def test_what_a_behavioural_backbone_makes_has_seen_images(bench):
    measures = Measures(bench, False, 1000)
    bench.behaves = True
    try:
        seen = {}
        for curve in list_curves(bench, [])[:1] + [c for c in list_curves(bench, []) if c.name == "layer noise"]:
            width, draw = curve.points[0]
            seen[curve.name] = measures.measure(curve, width, draw())["class"]
    finally:
        bench.behaves = False
    assert seen == {"joint": "images", "layer noise": "none"}
