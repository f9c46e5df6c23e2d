"""Mixtures: who wins on held-out images, by how much, what is said of it, and how weights are mixed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.tiny import WIDTHS, assert_equal, copied, tiny_backbone
from toolkit.heads.linear import LinearHead
from toolkit.heads.temperature import best_temperature, negative_log_likelihoods
from toolkit.plan import FreezeSpec
from toolkit.training.mixing import (
    LEAST_GAIN,
    NO_JUDGE,
    SHARES,
    SURE,
    WENT_ASTRAY,
    Mixture,
    Verdict,
    is_no_worse,
    judge,
    put_mixture,
    trained_state,
)
from toolkit.training.network import TransferNetwork

N = 9
LABELS = np.zeros(N, np.int64)


def scores_wrong_on(images, n=N, margin=1.0):
    """Return scores of two classes, all of one margin, that are wrong on the given images."""
    margins = np.full(n, margin)
    margins[list(images)] *= -1
    return np.stack([margins, np.zeros(n)], axis=1)


def calibrated(wrong, n=N):
    """Return the NLL of a right and of a wrong image where all margins are equal.

    The derivative of the temperature's loss by 1/T is 0 where the probability of an error is (wrong + 1/2)/(n + 1).
    """
    error = (wrong + 0.5) / (n + 1)
    return -math.log(1 - error), -math.log(error)


def five(*scores):
    """Return scores for every share: those given, then the first one's."""
    return [*scores, *[scores[0]] * (len(SHARES) - len(scores))]


def test_the_verdict_by_hand():
    wrong = (range(4), range(3), (), (0,), (0, 1))
    verdict = judge([scores_wrong_on(images) for images in wrong], LABELS)
    right, missed = calibrated(4)
    best, _ = calibrated(0)
    gains = np.array([missed - best] * 4 + [right - best] * 5)
    assert (verdict.share, verdict.n) == (0.5, N)
    assert verdict.gain == pytest.approx(gains.mean(), abs=1e-3)
    assert verdict.gain_se == pytest.approx(gains.std(ddof=1) / 3, abs=1e-3)
    assert [mixture.share for mixture in verdict.mixtures] == [0, 0.25, 0.5, 0.75, 1]
    assert [mixture.accuracy for mixture in verdict.mixtures] == pytest.approx([5 / 9, 6 / 9, 1, 8 / 9, 7 / 9])
    for mixture, images in zip(verdict.mixtures, wrong, strict=True):
        right, missed = calibrated(len(images))
        assert mixture.nll == pytest.approx((len(images) * missed + (N - len(images)) * right) / N, abs=1e-3)


def test_shares_go_from_the_head_to_the_fine_tuned_weights():
    assert list(SHARES) == sorted(set(SHARES)) and (SHARES[0], SHARES[-1]) == (0, 1)


def test_other_shares_are_judged_as_well():
    verdict = judge([scores_wrong_on(range(4)), scores_wrong_on(())], LABELS, shares=(0.0, 0.1))
    assert verdict.share == 0.1 and len(verdict.mixtures) == 2


def stays(verdict):
    return verdict.share == 0 and verdict.gain <= max(SURE * verdict.gain_se, LEAST_GAIN)


def test_the_head_stays_where_nothing_is_gained():
    verdict = judge(five(scores_wrong_on((0,))), LABELS)
    assert stays(verdict) and len({mixture.nll for mixture in verdict.mixtures}) == 1


def test_the_head_stays_where_the_gain_is_within_its_error():
    start, end = scores_wrong_on((0, 1, 2)), scores_wrong_on((3, 4))
    verdict = judge(five(start, end), LABELS)
    assert stays(verdict) and verdict.mixtures[1].accuracy > verdict.mixtures[0].accuracy
    assert verdict.mixtures[1].nll < verdict.mixtures[0].nll - 0.05
    many = judge(five(*(np.tile(scores, (40, 1)) for scores in (start, end))), np.tile(LABELS, 40))
    assert many.share == 0.25 and many.gain > many.gain_se, "the same gain on forty times the images is beyond it"


def test_a_training_is_held_against_the_trial_and_not_against_a_head_that_knows_the_images():
    """What has seen images and is right for more of them is no worse, though a head may know them all by heart."""
    by_heart, trial, again = (np.tile(scores_wrong_on(some, 20), (5, 1)) for some in ((), range(6), range(3)))
    labels = np.zeros(100, np.int64)
    assert is_no_worse(again, trial, labels) and not is_no_worse(again, by_heart, labels)
    assert is_no_worse(trial, trial, labels) and not is_no_worse(trial, again, labels)
    assert not is_no_worse(np.full_like(again, np.nan), trial, labels)


def test_a_gain_of_less_than_two_standard_errors_is_not_enough():
    for copies, kept in ((1, 0.0), (4, 0.25)):  # four times the images: half the error
        start, end = (np.tile(scores_wrong_on(some, 20), (copies, 1)) for some in (range(5), (5, 6)))
        labels = np.zeros(20 * copies, np.int64)
        verdict = judge(five(start, end), labels)
        losses = [negative_log_likelihoods(some, labels, best_temperature(some, labels)) for some in (start, end)]
        gains = losses[0] - losses[1]
        errors = gains.mean() / (gains.std(ddof=1) / len(gains) ** 0.5)
        assert verdict.share == kept and (1 < errors < SURE if kept == 0 else errors > SURE), errors
        assert verdict.gain / verdict.gain_se == pytest.approx(errors), "of what came nearest, where nothing is kept"


def test_what_could_become_sure_is_kept_once_enough_images_say_the_same():
    start, end = scores_wrong_on(range(5), 20), scores_wrong_on((5, 6), 20)
    once = judge(five(start, end), np.zeros(20, np.int64))
    z = once.gain / once.gain_se
    assert 1 < z < SURE and once.share == 0
    for times in (1, 2, 3, 4, 9):
        more = judge(five(*(np.tile(some, (times, 1)) for some in (start, end))), np.zeros(20 * times, np.int64))
        likely = once.could_become_sure(times)
        assert likely == (z * times**0.5 > SURE)
        assert likely == (more.share > 0) or abs(z * times**0.5 / SURE - 1) < 0.05
        assert not (more.share > 0 and more.could_become_sure(100)), "what is kept needs no more"


def test_a_gain_of_nothing_however_even_is_none_that_comes_near():
    start = scores_wrong_on(range(5), 20)
    hair, end = start.copy(), scores_wrong_on((5, 6), 20)
    hair[5:7] *= 1.001  # by which the likelihood of the others, too, changes
    verdict = judge([start, hair, end, end, end], np.zeros(20, np.int64))
    assert verdict.share == 0 and verdict.could_become_sure(3)
    assert verdict.gain == pytest.approx(verdict.mixtures[0].nll - verdict.mixtures[2].nll)


def test_what_won_nothing_cannot_become_sure():
    for verdict in (
        judge(five(scores_wrong_on((0,))), LABELS),
        judge(five(scores_wrong_on((0,)), scores_wrong_on((1, 2, 3))), LABELS),
        judge(five(scores_wrong_on((0,)) * np.nan, scores_wrong_on(())), LABELS),
        judge(five(scores_wrong_on((0,), 1), scores_wrong_on((), 1)), LABELS[:1]),
        NO_JUDGE,
        WENT_ASTRAY,
    ):
        assert verdict.share == 0 and not verdict.could_become_sure(1e9), verdict
        json.dumps(verdict.to_dict(), allow_nan=False)


def unsure_and_right():
    """Return scores that are right on 8 of 10 images by a hair and wrong on 2 by far."""
    return np.concatenate([scores_wrong_on((), 8, 0.01), scores_wrong_on((0, 1), 2)])


def sure_and_wrong(n_wrong):
    """Return scores that are right by far, and wrong on some of 10 images by a hair."""
    right = 10 - n_wrong
    return np.concatenate([scores_wrong_on((), right, 10), scores_wrong_on(range(n_wrong), n_wrong, 0.01)])


def test_the_head_stays_where_accuracy_would_be_lost():
    labels = np.zeros(10, np.int64)
    lower = judge(five(unsure_and_right(), sure_and_wrong(3)), labels)
    assert stays(lower) and lower.mixtures[1].nll < lower.mixtures[0].nll - 0.3
    assert not lower.could_become_sure(1e9), "more images that say the same would not give it more hits"
    assert judge(five(unsure_and_right(), sure_and_wrong(2)), labels).share == 0.25, "equal accuracy is no loss"


def test_of_equal_mixtures_the_most_fine_tuned_is_kept():
    assert judge(five(scores_wrong_on(range(4)), scores_wrong_on(()), scores_wrong_on(())), LABELS).share == 0.5


def test_a_larger_share_is_kept_where_it_is_worse_by_chance_only():
    head, best, more = (scores_wrong_on(some, 40) for some in (range(20), (0, 1), (2, 3, 4)))
    labels = np.zeros(40, np.int64)
    verdict = judge(five(head, best, more), labels)
    assert verdict.share == 0.5 and verdict.mixtures[2].nll > verdict.mixtures[1].nll, "two against three is chance"
    assert verdict.gain == pytest.approx(verdict.mixtures[0].nll - verdict.mixtures[2].nll)
    lost = judge(five(head, best, scores_wrong_on(range(2, 11), 40)), labels)
    assert lost.share == 0.25 and lost.gain > verdict.gain, "two against nine is not"


def test_a_larger_share_must_beat_the_head_as_well():
    head = np.concatenate([scores_wrong_on((), 8), scores_wrong_on((0, 1), 2)])
    better = np.concatenate([scores_wrong_on((), 8, 2.0), scores_wrong_on((0, 1), 2, 0.5)])
    fewer_right = np.concatenate([scores_wrong_on((), 7, 2.0), scores_wrong_on((0, 1, 2), 3, 0.01)])
    labels = np.zeros(10, np.int64)
    assert judge([head, fewer_right, better], labels, (0.0, 0.5, 1.0)).share == 1.0
    assert judge([head, better, fewer_right], labels, (0.0, 0.5, 1.0)).share == 0.5


def test_scores_that_are_no_numbers_are_never_kept_and_leave_a_verdict_for_json():
    verdict = judge(five(scores_wrong_on(range(4)), scores_wrong_on(()), np.full((N, 2), np.nan)), LABELS)
    assert verdict.share == 0.25
    told = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert told["mixtures"][2]["nll"] is None and told["mixtures"][1]["nll"] == verdict.mixtures[1].nll
    assert math.isnan(Verdict.from_dict(told).mixtures[2].nll)


def test_the_largest_share_and_not_the_last_one():
    best = scores_wrong_on(())
    assert judge([scores_wrong_on(range(4)), best, best], LABELS, (0.0, 1.0, 0.5)).share == 1.0


def test_without_images_or_with_one_the_head_stays():
    assert judge([np.zeros((0, 2))] * 5, np.zeros(0, np.int64)) == NO_JUDGE
    alone = judge(five(scores_wrong_on((0,), 1), scores_wrong_on((), 1)), LABELS[:1])
    assert stays(alone) and alone.n == 1 and alone.mixtures[1].accuracy == 1


@pytest.mark.parametrize("which", [0, 2, 4])
@pytest.mark.parametrize("factor", [1e-3, 30.0])
def test_sharpness_is_no_merit(which, factor):
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 4, 60)
    scores = [share * np.eye(4)[labels] + generator.normal(0, 0.7, (60, 4)) for share in (0.6, 0.8, 1.6, 1.2, 1.0)]
    plain = judge(scores, labels)
    assert plain.share == 0.5
    other = judge([factor * some if number == which else some for number, some in enumerate(scores)], labels)
    assert other.share == plain.share and other.gain == pytest.approx(plain.gain, abs=1e-6)
    assert [m.nll for m in other.mixtures] == pytest.approx([m.nll for m in plain.mixtures], abs=1e-6)
    factors = [factor if number == which else 1 for number in range(5)]
    temperatures = [m.temperature * factor for m, factor in zip(plain.mixtures, factors, strict=True)]
    assert [m.temperature for m in other.mixtures] == pytest.approx(temperatures, rel=1e-3)
    assert other.temperature == other.mixtures[2].temperature


def test_the_head_that_stays_keeps_its_temperature():
    assert judge(five(scores_wrong_on((0,))), LABELS).temperature == NO_JUDGE.temperature == 1


def verdict_of(share, gain=0.25, se=0.125):
    mixtures = tuple(Mixture(each, 0.5 + each / 4, 1.0 - each / 2, 2.0 + each) for each in SHARES)
    return Verdict(share, 40, gain, se, mixtures)


@pytest.mark.parametrize(
    "verdict", [NO_JUDGE, WENT_ASTRAY, verdict_of(0.0, 0.0, 0.0), verdict_of(0.75), verdict_of(1.0)], ids=str
)
def test_a_verdict_survives_json(verdict):
    again = Verdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False)))
    assert again == verdict and str(again) == str(verdict)
    assert Verdict.from_dict(verdict.to_dict()) == verdict


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (
            NO_JUDGE,
            "fine-tuning steps aside: there are no images to judge it by; the head is kept",
        ),
        (
            verdict_of(0.0),
            "fine-tuning steps aside: on 40 training images held out of it, it reached 0.750 (NLL 0.500) and the head "
            "alone 0.500 (NLL 1.000); the head is kept",
        ),
        (
            verdict_of(0.75),
            "kept: 75% fine-tuned, the rest as it began; on 40 training images held out of it, 0.688 against the "
            "head's 0.500, NLL 0.625 against 1.000 (gain 0.250 ± 0.125)",
        ),
        (
            verdict_of(1.0),
            "kept: fine-tuned weights; on 40 training images held out of it, 0.750 against the head's 0.500, "
            "NLL 0.500 against 1.000 (gain 0.250 ± 0.125)",
        ),
        (
            replace(verdict_of(1.0), trials=3),
            "kept: fine-tuned weights; on 40 training images held out of 3 trials, 0.750 against the head's 0.500, "
            "NLL 0.500 against 1.000 (gain 0.250 ± 0.125)",
        ),
    ],
    ids=["no images", "the head", "a mixture", "fine-tuned", "of three trials"],
)
def test_what_is_said_of_a_verdict(verdict, said):
    assert str(verdict) == said


CUT = 2


def network():
    return TransferNetwork(tiny_backbone(), LinearHead(WIDTHS[-1:], 3), FreezeSpec.at_cut(4, CUT))


def frozen_names(net):
    return {name for name, parameter in net.named_parameters() if not parameter.requires_grad}


def trained(net, by=0.5):
    """Return `trained_state` after a change to everything: floats grow by `by`, counters by 7."""
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name not in frozen_names(net):
                value.add_(by if value.is_floating_point() else 7)
    return trained_state(net)


def test_trained_state_is_a_copy_of_what_training_may_change():
    net = network()
    state = trained_state(net)
    assert frozen_names(net) and frozen_names(net).isdisjoint(state)
    assert state.keys() == net.state_dict().keys() - frozen_names(net)
    assert {f"stages.{CUT}.0.weight", f"stages.{CUT}.1.running_mean", "head.linear.bias"} <= state.keys()
    before = copied(state)
    trained(net)
    assert_equal(state, before)
    assert not any(value.requires_grad for value in state.values())


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_mixture_lies_between_and_leaves_the_frozen_parameters_alone(share):
    net = network()
    start = trained_state(net)
    end = trained(net)
    ends = copied(start), copied(end)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(3.0)
    put_mixture(net, start, end, share)
    state = net.state_dict()
    assert all((state[name] == 3).all() for name in frozen_names(net))
    counters = {name for name, value in state.items() if not value.is_floating_point()}
    assert any(name.startswith("stages.3.") for name in counters)
    for name in counters:
        assert torch.equal(state[name], end[name]) and not torch.equal(state[name], start[name])
    for name in start.keys() - counters:
        if share in (0, 1):
            assert torch.equal(state[name], (start, end)[int(share)][name])
        else:
            torch.testing.assert_close(state[name], (1 - share) * start[name] + share * end[name])
            assert not torch.equal(state[name], start[name]) and not torch.equal(state[name], end[name])
    assert_equal(start, ends[0])
    assert_equal(end, ends[1])


def test_a_mixture_is_what_the_network_runs_with():
    net = network()
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    start = trained_state(net)
    with torch.inference_mode():
        first = net(pixels)
    end = trained(net)
    put_mixture(net, start, end, 1.0)
    with torch.inference_mode():
        assert not torch.equal(net(pixels), first)
    put_mixture(net, start, end, 0.0)
    with torch.inference_mode():
        assert torch.equal(net(pixels), first)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("inference", [False, True])
def test_the_frozen_stages_need_not_be_made_anew_for_a_mixture(share, inference):
    net = network()
    start, frozen = trained_state(net), copied(net.stages[:CUT].state_dict())
    with torch.no_grad():
        for value in (*net.stages[CUT:].state_dict().values(), *net.head.state_dict().values()):
            value.add_(1)
    end, made = trained_state(net), net.prefix()
    with torch.inference_mode(inference):
        put_mixture(net, start, end, share)
    assert net.prefix() is made
    assert_equal(copied(net.stages[:CUT].state_dict()), frozen)
    for name, value in net.state_dict().items():
        if name in end:
            whole = not value.is_floating_point()
            expected = end[name] if whole else torch.lerp(start[name], end[name], share)
            torch.testing.assert_close(value, expected)


def test_frozen_stages_are_made_anew_where_a_mixture_changes_them():
    net = network()
    state, made = trained_state(net), net.prefix()
    state["stages.0.1.running_mean"] = state["stages.0.1.running_mean"] + 1
    put_mixture(net, state, state, 1.0)
    assert net.prefix() is not made
