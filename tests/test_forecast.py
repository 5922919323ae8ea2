"""What a plan says of hours comes from what the store has measured."""

import pytest

from mzsane.config import AblationConfig
from mzsane.forecast import forecast
from mzsane.plan import plan_ablation
from mzsane.store.artifacts import ArtifactStore, Work
from mzsane.store.making import record_making
from tests.pipeline.harness import MINI


def plan(models=6, steps=60):
    settings = MINI | {"zoos": [MINI["zoos"][0] | {"models": models}], "backbone": MINI["backbone"] | {"steps": steps}}
    return plan_ablation(AblationConfig.model_validate(settings))


def publish(stage, store: ArtifactStore, seed, size=100):
    work = Work(stage.work.kind, 99, stage.work.config | {"again": seed}, {}, seed=seed)
    with record_making(stage.name):
        store.publish(work, {"a.bin": bytes(size)}, {})
    return store.open(work.ref).manifest.made


def test_an_empty_store_tells_nothing(store):
    stages = plan()
    told = forecast(stages, store)
    assert (told.seconds, told.bytes, told.known, told.unknown, told.hosts) == (0, 0, 0, len(stages), ())


def test_what_was_done_is_scaled_by_the_work_that_there_is(store):
    stages = [stage for stage in plan() if stage.work.kind in ("zoo", "backbone")]
    made = [publish(stage, store, 1) for stage in stages]
    same = forecast(stages, store)
    assert (same.known, same.unknown, same.bytes, same.hosts) == (2, 0, 200, (made[0].host,))
    assert same.seconds == pytest.approx(sum(each.seconds for each in made))
    larger = [stage for stage in plan(models=12, steps=180) if stage.work.kind in ("zoo", "backbone")]
    told = forecast(larger, store)
    assert told.seconds == pytest.approx(2 * made[0].seconds + 3 * made[1].seconds)
    assert told.bytes == 500


def test_what_is_not_like_anything_is_counted(store):
    stages = plan()
    publish(stages[0], store, 1)
    told = forecast(stages, store)
    assert (told.known, told.unknown) == (1, len(stages) - 1)
