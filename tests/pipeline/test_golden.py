"""Output changes only with its fingerprint: the numbers of a very small pipeline are those of `golden.json`."""

import copy
import json

import pytest

from tests.pipeline.golden import FILE, MODULES, find_changes, measure


@pytest.fixture(scope="module")
def recorded():
    return json.loads(FILE.read_text())


def test_output_is_that_of_its_fingerprint(recorded, tmp_path):
    assert find_changes(recorded, json.loads(json.dumps(measure(str(tmp_path))))) == []


@pytest.mark.parametrize("kind", MODULES)
def test_changed_number_asks_for_a_version(kind, recorded):
    changed = copy.deepcopy(recorded)
    name = next(iter(changed[kind]["means"]))
    changed[kind]["means"][name] *= 1.03
    (message,) = find_changes(recorded, changed)
    assert f"raise VERSION in {MODULES[kind]}" in message
    assert "python tests/pipeline/golden.py" in message
    assert name in message


def test_rounding_of_another_cpu_is_forgiven(recorded):
    changed = copy.deepcopy(recorded)
    for kind in MODULES:
        changed[kind]["means"] = {name: value * 1.002 for name, value in changed[kind]["means"].items()}
        changed[kind]["projections"] = {name: value + 0.002 for name, value in changed[kind]["projections"].items()}
    assert find_changes(recorded, changed) == []


@pytest.mark.parametrize("part", ["projections", "facts"])
def test_other_content_with_the_same_means_is_noticed(part, recorded):
    changed = copy.deepcopy(recorded)
    name = next(iter(changed["tokens"][part]))
    changed["tokens"][part][name] = 0.5
    (message,) = find_changes(recorded, changed)
    assert "raise VERSION in mzsane/tokens/build.py" in message


@pytest.mark.parametrize(("part", "value"), [("version", 99), ("fingerprint", "another")])
def test_renamed_work_asks_for_a_rewrite(part, value, recorded):
    changed = copy.deepcopy(recorded)
    changed["backbone"][part] = value
    changed["backbone"]["means"] = {}
    (message,) = find_changes(recorded, changed)
    assert "VERSION, settings or inputs of backbone have changed" in message
    assert "golden.py" in message
    assert "raise" not in message


def test_lost_kind_is_noticed(recorded):
    changed = {kind: value for kind, value in recorded.items() if kind != "scores"}
    assert len(find_changes(recorded, changed)) == 1
