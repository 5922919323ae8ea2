"""Parts of an ablation that fail, by whatever error, stop no other."""

import os
import signal

import pytest

from flows.dispatch import _join_errors, _try_part
from mzsane.errors import ConfigError, DivergedError, WorkerError
from mzsane.parallel import map_apart

PARTS = [{"composition": name, "seed": 0} for name in ("one", "two", "three")]


def act(item):
    """Return, fail to, or be killed."""
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_process_that_is_killed_takes_no_other():
    found = dict(map_apart(act, ["a", "killed", "b", "c"], 2))
    assert {position: found[position] for position in (0, 2, 3)} == {0: "a", 2: "b", 3: "c"}
    assert isinstance(found[1], WorkerError)


@pytest.mark.parametrize("error", [ValueError("odd\nvalue"), KeyError("x"), RuntimeError("full"), MemoryError()])
def test_any_error_is_kept_and_told(error):
    def fail(**parameters):
        raise error

    found = _try_part(fail, {})
    assert isinstance(found, WorkerError)
    assert type(error).__name__ in str(found)
    assert "\n" not in str(found)


def test_failures_are_named_and_keep_their_kind():
    wrong = _join_errors({0: ConfigError("a width"), 2: ConfigError("a width")}, PARTS)
    assert isinstance(wrong, ConfigError)
    assert "2 of 3" in str(wrong)
    assert "arm one-s0, arm three-s0: a width" in str(wrong)
    mixed = _join_errors({0: ConfigError("a width"), 1: DivergedError("exploded")}, PARTS)
    assert type(mixed) is WorkerError
