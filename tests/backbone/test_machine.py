"""What is said of the machine: operations, number format, memory, and the speed of the steps."""

import dataclasses
import itertools
import subprocess
import sys
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mzsane.backbone import machine
from mzsane.backbone import profile as clock_module
from mzsane.backbone.attention import plan_attention
from mzsane.backbone.autoencoder import build_autoencoder
from mzsane.backbone.distributed.ranks import Ranks
from mzsane.backbone.loader import TrainingBatch
from mzsane.backbone.machine import (
    choose_precision,
    count_flops,
    keep_freed_memory,
    measure_matrix_peak,
)
from mzsane.backbone.profile import SpeedMeter
from mzsane.config import BackboneConfig

CPU = torch.device("cpu")


def count_for_real(config: BackboneConfig, segments: torch.Tensor) -> int:
    """Return the operations in matrix products of a forward and backward pass over windows."""
    model = build_autoencoder(config, 51, torch.Generator().manual_seed(0))
    windows, window = segments.shape
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(windows, window, 51, generator=generator)
    positions = torch.zeros(windows, window, 3, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        outputs = model(tokens, positions, (segments > 0) * 51, plan_attention(segments))
        sum(output.sum() for output in outputs).backward()
    total: int = counter.get_total_flops()
    return total


@pytest.mark.parametrize(
    ("window", "d_model", "heads", "layers", "shortcut"),
    [
        (66, 128, 4, 2, False),
        (100, 64, 2, 4, False),
        (20, 160, 4, 3, False),
        (120, 192, 8, 1, False),
        (20, 32, 4, 1, True),
    ],
)
def test_operations_are_those_of_a_real_step(
    window: int, d_model: int, heads: int, layers: int, shortcut: bool
) -> None:
    config = BackboneConfig(
        window=window, d_model=d_model, heads=heads, layers=layers, latent_dim=48, shortcut=shortcut
    )
    real = count_for_real(config, torch.ones(4, window, dtype=torch.int64))
    assert count_flops(config, 51, 4 * window, 4 * window**2) == pytest.approx(real, rel=0.02)


def test_operations_of_packed_models_are_those_of_their_lengths() -> None:
    config = BackboneConfig(window=120, d_model=128, heads=4, layers=2, latent_dim=48)
    real = count_for_real(config, torch.tensor([[1] * 60 + [2] * 60] * 4))
    assert count_flops(config, 51, 480, 480 * 60) == pytest.approx(real, rel=0.02)
    assert count_flops(config, 51, 480, 480 * 120) > 1.02 * real


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_number_format_that_is_set_is_taken(kind: str) -> None:
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        config = BackboneConfig.model_validate({"precision": precision})
        assert choose_precision(config, torch.device(kind)) == dtype


@pytest.mark.parametrize(
    ("avx512", "amx", "dtype"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (True, True, torch.bfloat16),
    ],
)
def test_auto_takes_bfloat16_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_precision(BackboneConfig(), CPU) == dtype


def test_matrix_peak_is_that_of_the_fastest_product_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = itertools.chain([1.0], itertools.cycle([7.0, 4.0, 5.0]))  # the first makes plans and does not count
    clock = itertools.accumulate(itertools.chain.from_iterable((0.5, duration) for duration in durations))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    size = 16
    monkeypatch.setitem(machine._PEAK_SIZE, "cpu", size)
    assert measure_matrix_peak(CPU, torch.float32) == pytest.approx(2 * size**3 / 4.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is glibc's")
def test_freed_memory_is_kept_and_given_back() -> None:
    code = """
        import torch
        from mzsane.backbone.machine import keep_freed_memory, measure_memory

        def measure():
            return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

        def use_and_free():
            blocks = [torch.ones(4 * 2**18) for _ in range(50)]  # 50 of 4 MiB
            return measure()

        torch.ones(10)
        start = measure()
        keep_freed_memory()
        used = use_and_free() - start
        kept = measure() - start
        keep_freed_memory(False)
        left = measure() - start
        print(used, kept, left, measure_memory(torch.device("cpu")) * 1024 - start)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    used, kept, left, most = map(float, done.stdout.split())
    assert used >= 190
    assert kept >= 190
    assert left < 20
    assert 190 <= most < 400  # the largest that it was, not what it is


def test_keeping_memory_can_be_asked_for_again_and_again() -> None:
    for keep in (True, True, False, False, True, False):
        keep_freed_memory(keep)


class TestClock:
    """A process at a time that the test sets."""

    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        now = SimpleNamespace(seconds=100.0)
        monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
        return now

    def make(self, count: int = 1) -> tuple[SpeedMeter, Any, TrainingBatch]:
        config = BackboneConfig(window=4, d_model=16, heads=1, layers=1)
        feeder: Any = SimpleNamespace(waited=5.0)
        clock = SpeedMeter(config, 7, torch.float32, feeder, Ranks(0, count))
        clock.peak = 2e6
        empty = torch.zeros(0)
        fields = dict.fromkeys((field.name for field in dataclasses.fields(TrainingBatch)), empty)
        return clock, feeder, TrainingBatch(**fields | {"weights": 600, "tokens": (50, 200)})  # type: ignore[arg-type]

    def test_rates_are_over_the_time_since_the_start(self, now: SimpleNamespace) -> None:
        clock, feeder, feed = self.make(count=2)
        now.seconds += 1000  # what came before the first step
        clock.start()
        for _ in range(3):
            clock.count(feed)
        now.seconds += 10
        feeder.waited += 0.5
        values = clock.read()
        assert values["tokens_per_s"] == 15
        assert values["weights_per_s"] == 90  # this process's half
        assert values["waiting_share"] == pytest.approx(0.05)
        assert values["matrix_peak_share"] == pytest.approx(3 * count_flops(clock.config, 7, 50, 200) / 10 / 2e6)
        assert values["memory_gib"] > 0

    def test_reading_begins_anew(self, now: SimpleNamespace) -> None:
        clock, feeder, feed = self.make()
        clock.count(feed)
        now.seconds += 1
        feeder.waited += 0.5
        assert clock.read()["tokens_per_s"] == 50
        clock.count(feed)
        now.seconds += 2
        values = clock.read()
        assert values["tokens_per_s"] == 25
        assert values["waiting_share"] == 0

    def test_summary_is_the_median(self, now: SimpleNamespace) -> None:
        clock, _, feed = self.make()
        for seconds in (1, 10, 2):
            clock.count(feed)
            now.seconds += seconds
            clock.read()
        assert clock.summary["tokens_per_s"] == 25
        assert clock.summary["weights_per_s"] == 300

    def test_peak_is_measured_once_and_not_counted(self, now: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def measure(device: torch.device, precision: torch.dtype) -> float:
            calls.append((device, precision))
            now.seconds += 1000
            return 3e6

        monkeypatch.setattr(clock_module, "measure_matrix_peak", measure)
        clock, _, feed = self.make()
        clock.peak = None
        for _ in range(2):
            clock.count(feed)
            now.seconds += 1
            assert clock.read()["tokens_per_s"] == 50
        assert calls == [(CPU, torch.float32)]
