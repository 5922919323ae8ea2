"""Augmentations: nothing at strength 0, zeros in the padding, the promised statistics, seeded, inputs untouched."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mzsane.errors import ConfigError
from mzsane.windows.augment import add_noise, cut_mix, draw_partners, erase, mix_up, scale_noise

QUICK = settings(max_examples=30, deadline=None, derandomize=True)


def generate(seed=0):
    return torch.Generator().manual_seed(seed)


def make_windows(views=2, batch=6, window=8, width=5, kinds=2, seed=0):
    """Return tokens, mask and positions: window b shows the places of kind b % kinds, which has b % kinds paddings."""
    tokens_VBWD = torch.randn(views, batch, window, width, generator=generate(seed)) + 3
    kind_B = torch.arange(batch) % kinds
    mask_BWD = torch.ones(batch, window, width, dtype=torch.bool)
    for b, kind in enumerate(kind_B.tolist()):
        mask_BWD[b, :, width - kind :] = False
    positions_BW3 = torch.arange(window)[None, :, None] + 10 * kind_B[:, None, None].expand(-1, -1, 3)
    return tokens_VBWD * mask_BWD, mask_BWD, positions_BW3


OPERATIONS = {
    "add_noise": lambda x, mask, positions, strength, g: add_noise(x, mask, strength, g),
    "scale_noise": lambda x, mask, positions, strength, g: scale_noise(x, strength, g),
    "erase": lambda x, mask, positions, strength, g: erase(x, strength, g),
    "mix_up": mix_up,
    "cut_mix": cut_mix,
}


@QUICK
@given(
    name=st.sampled_from(sorted(OPERATIONS)), kinds=st.integers(1, 4), strength=st.floats(0, 1), seed=st.integers(0, 9)
)
def test_every_operation_keeps_the_padding_and_its_input(name, kinds, strength, seed):
    tokens, mask, positions = make_windows(kinds=kinds)
    before = tokens.clone()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    result, again = (OPERATIONS[name](tokens, mask, positions, strength, generate(seed)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(tokens, before)
    assert result.data_ptr() != tokens.data_ptr()
    assert result.shape == tokens.shape
    assert torch.equal(result, again)
    assert not result[~mask.expand_as(result)].any()


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_strength_0_is_the_identity_and_other_seeds_differ(name):
    tokens, mask, positions = make_windows()
    assert torch.equal(OPERATIONS[name](tokens, mask, positions, 0.0, generate()), tokens)
    one, two = (OPERATIONS[name](tokens, mask, positions, 0.5, generate(seed)) for seed in (1, 2))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_wrong_strengths_are_refused(name):
    for wrong in (-0.1, float("nan"), *([] if "noise" in name else [1.5])):
        with pytest.raises(ConfigError, match=str(wrong)):
            OPERATIONS[name](*make_windows(), wrong, generate())


def test_noise_has_the_deviation_asked_for():
    tokens, mask, _ = make_windows(batch=200, window=50)
    weights = mask.expand_as(tokens)
    added = (add_noise(tokens, mask, 0.2, generate()) - tokens)[weights]
    factor = (scale_noise(tokens, 0.1, generate()) / tokens)[weights]
    # 90,000 values: the deviation's own deviation is 0.24 %, the mean's 0.33 % of the deviation.
    assert added.std() == pytest.approx(0.2, rel=0.02)
    assert abs(added.mean()) < 0.02 * 0.2
    assert factor.std() == pytest.approx(0.1, rel=0.02)
    assert factor.mean() == pytest.approx(1, abs=0.02 * 0.1)
    first, second = (scale_noise(tokens, 0.1, generate()) / tokens)[:, mask]
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.02  # views have noise of their own


def test_erasing_takes_rectangles_of_the_share_asked_for_each_sample_its_own():
    tokens = torch.ones(2, 400, 64, 48)
    erased = erase(tokens, 0.1, generate()) == 0
    shares = erased.float().mean(dim=(2, 3)).flatten()
    assert shares.mean() == pytest.approx(0.1, abs=0.002)
    assert shares.std() < 0.01  # rounding of the sides only
    corners = set()
    for plane_WD in erased.flatten(0, 1):
        rows, columns = plane_WD.any(dim=1).nonzero().squeeze(1), plane_WD.any(dim=0).nonzero().squeeze(1)
        assert torch.equal(plane_WD[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), torch.tensor(True))
        assert int(plane_WD.sum()) == len(rows) * len(columns)
        corners.add((int(rows[0]), int(columns[0]), len(rows)))
    assert len(corners) > 600
    sides = torch.stack([erased.any(dim=3).sum(dim=2).flatten() / 64, erased.any(dim=2).sum(dim=2).flatten() / 48])
    assert sides.min() < 0.15  # long and flat as well as short and wide
    assert sides.max() > 0.85
    assert erased.flatten(0, 1).any(dim=2).any(dim=0).all()  # no token is spared, and no column
    assert erased.flatten(0, 1).any(dim=1).any(dim=0).all()
    untouched = (erase(tokens, 0.1, generate(), probability=0.25) != 0).all(dim=3).all(dim=2).float().mean()
    assert untouched == pytest.approx(0.75, abs=0.06)
    twice = (erase(tokens, 0.1, generate(), rectangles=2) == 0).float().mean()
    assert 0.15 < twice < 0.2
    assert not erase(tokens, 1.0, generate()).any()


def test_partners_show_the_same_places():
    _, mask, positions = make_windows(batch=9, kinds=3)
    mask[8] = False  # one of its kind now
    seen = set()
    for seed in range(30):
        partner_B = draw_partners(mask, positions, generate(seed))
        assert sorted(partner_B.tolist()) == list(range(9))
        for b, other in enumerate(partner_B.tolist()):
            assert torch.equal(mask[b], mask[other])
            assert torch.equal(positions[b], positions[other])
            assert (b == other) == (b == 8)
            seen.add((b, other))
    assert len(seen) == 2 * 3 * 2 + 2 + 1  # every pair of a kind


def test_mix_up_is_convex_and_the_same_in_all_versions():
    tokens, mask, positions = make_windows(batch=1000, window=2, kinds=1)
    numbers = torch.arange(1000.0)[:, None, None] * torch.ones(2, 1, 2, 5)
    partner_B = draw_partners(mask, positions, generate())
    mixed = mix_up(numbers, mask, positions, 0.6, generate())
    share_VBWD = (mixed - numbers) / (numbers[:, partner_B] - numbers)
    assert torch.allclose(share_VBWD, share_VBWD[:1, :, :1, :1].expand_as(share_VBWD), atol=1e-2)
    share_B = share_VBWD[0, :, 0, 0]
    assert share_B.min() > -1e-3
    assert share_B.max() < 0.6 + 1e-3
    assert share_B.mean() == pytest.approx(0.3, abs=0.02)
    assert tokens.shape == mix_up(tokens, mask, positions, 0.6, generate()).shape


def test_cut_mix_replaces_a_run_of_tokens():
    _, mask, positions = make_windows(batch=400, window=20, kinds=1)
    numbers = torch.arange(400.0)[:, None, None] * torch.ones(2, 1, 20, 5)
    partner_B = draw_partners(mask, positions, generate())
    mixed = cut_mix(numbers, mask, positions, 0.25, generate())
    swapped = mixed != numbers
    assert torch.equal(mixed, torch.where(swapped, numbers[:, partner_B], numbers))
    run_BW = swapped[0, :, :, 0]
    assert torch.equal(swapped, run_BW[:, :, None].expand_as(swapped))
    assert (run_BW.sum(dim=1) == 5).all()
    starts_B = run_BW.float().argmax(dim=1)
    assert (run_BW.int().diff(dim=1).abs().sum(dim=1) <= 2).all()  # one run
    assert set(starts_B.tolist()) == set(range(16))


def test_windows_without_versions_are_augmented_too():
    tokens, mask, positions = make_windows(views=1)
    for operation in OPERATIONS.values():
        one = operation(tokens[0], mask, positions, 0.3, generate())
        assert torch.equal(one, operation(tokens, mask, positions, 0.3, generate())[0])
