"""Rehearsals: short trainings at other rates, everything as it was afterwards, and which rate they settle on."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.test_range_test import batches_of, data, held_out_of, module_of
from tests.training.tiny import assert_equal, copied
from toolkit.data.datamodule import ImageFolderData
from toolkit.data.manifest import VAL
from toolkit.heads.examples import UNSEEN_BIAS
from toolkit.training import rehearsal, tryout
from toolkit.training.checkpoints import random_state
from toolkit.training.range_chart import range_chart
from toolkit.training.range_test import RangePoint, settled, suggestion
from toolkit.training.rehearsal import AT_MOST, Rehearsal, climb, lowest, rehearse

__all__ = ["data"]


@pytest.mark.parametrize(
    "recipe", [{}, {"optimizer": "sgd", "mixup": 0.4}, {"batchnorm": "moving"}], ids=["adamw", "sgd", "moving norms"]
)
def test_everything_is_as_it_was_to_the_bit(data: ImageFolderData, recipe: dict[str, Any]) -> None:
    module = module_of(**recipe)
    state, modes, drawn = copied(module.state_dict()), [part.training for part in module.modules()], random_state()
    found = rehearse(module, batches_of(data), held_out_of(data), 1.0, steps=5)
    assert found.losses.shape == found.hits.shape == (len(data.manifest.rows(VAL)),)
    assert_equal(copied(module.state_dict()), state)
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(random_state()["torch"], drawn["torch"])


def test_the_rates_of_all_groups_rise_and_fall_together(data: ImageFolderData, monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(warmup=0.25)
    own = [group["lr"] for group in module.make_optimizer().param_groups]
    during: list[list[float]] = []
    learn = rehearsal.learn

    def watched(module: Any, optimizer: Any, *rest: Any) -> Any:
        during.append([group["lr"] / lr for group, lr in zip(optimizer.param_groups, own, strict=True)])
        return learn(module, optimizer, *rest)

    monkeypatch.setattr(rehearsal, "learn", watched)
    rehearse(module, batches_of(data), held_out_of(data), 3.0, steps=8)
    assert len(during) == 8 and all(max(step) == pytest.approx(min(step)) for step in during)
    factors = [step[0] for step in during]
    assert factors[:3] == pytest.approx([1.0, 2.0, 3.0]) and factors[3:] == sorted(factors[3:], reverse=True)
    assert 0 < factors[-1] < 0.5


def test_a_class_never_seen_changes_nothing(data: ImageFolderData) -> None:
    """Its score is far below all others, which the temperature of the others must not be found by."""
    found = []
    for seen in ([True] * 3, [True] * 3 + [False]):
        module = module_of(n_classes=len(seen))
        with torch.no_grad():
            module.network.head.linear.bias[3:] = UNSEEN_BIAS  # type: ignore[union-attr, operator, index]
        more: dict[str, Any] = {"steps": 10, "seen": np.array(seen)}
        found.append(rehearse(module, batches_of(data), held_out_of(data), 1.0, **more))
    assert found[1].losses == pytest.approx(found[0].losses, rel=1e-5) and (found[0].hits == found[1].hits).all()


def test_more_steps_at_a_good_rate_learn_more_and_a_wild_one_is_found_out(data: ImageFolderData) -> None:
    module, batches = module_of(), batches_of(data)
    held_out = list(batches(0))  # so few images that others would not tell
    still = rehearse(module, batches, held_out, 1e-6, steps=40)
    good = rehearse(module, batches, held_out, 1.0, steps=40)
    assert good.loss < 0.9 * still.loss, (good.loss, still.loss)
    wild = rehearse(module_of(optimizer="sgd"), batches, held_out, 1e30, steps=20, clip=None)
    assert wild.loss == math.inf and wild.accuracy == 0.0
    assert wild.to_dict() == {"multiplier": 1e30, "loss": None, "accuracy": 0.0}


def of(multiplier: float, loss: float, n: int = 50) -> Rehearsal:
    return Rehearsal(multiplier, np.full(n, loss), np.ones(n, dtype=bool))


def climbed(valley: float, starts: list[float], **bounds: float) -> list[float]:
    """Return the factors that were tried where the loss is lowest at `valley`."""
    done = climb(lambda m: of(m, abs(math.log(m / valley))), starts, **{"low": 1e-3, "high": 1e2, **bounds})
    return [one.multiplier for one in done]


def test_it_climbs_by_threes_as_long_as_that_helps() -> None:
    assert climbed(10, [1.0, 0.5]) == pytest.approx([1, 0.5, 3, 9, 27])
    assert climbed(0.1, [1.0, 0.5]) == pytest.approx([1, 0.5, 1.5, 0.5 / 3, 0.5 / 9, 0.5 / 27][:5])
    assert climbed(1, [1.0]) == pytest.approx([1, 3, 1 / 3])
    assert len(climbed(1e9, [1.0], high=1e10)) == AT_MOST
    assert climbed(1e9, [1.0], high=5.0) == pytest.approx([1, 3])


def test_it_does_not_wander_where_nothing_changes() -> None:
    """Where hardly anything is learned, a smaller rate is a hair better each time, and trains even less."""
    done = climb(lambda m: of(m, 0.6450 + 5e-4 * math.log10(m)), [1.0, 0.3], low=1e-3, high=1e2)
    assert min(one.multiplier for one in done) >= 0.3 and lowest(done).multiplier == 1.0


def test_batches_are_accumulated_and_stages_wait_as_in_the_training(
    data: ImageFolderData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[float]]] = []
    learn = rehearsal.learn

    def watched(module: Any, optimizer: Any, batches: Any, *rest: Any) -> Any:
        seen.append((len(batches), [group["lr"] for group in optimizer.param_groups]))
        return learn(module, optimizer, batches, *rest)

    monkeypatch.setattr(rehearsal, "learn", watched)
    settings: dict[str, Any] = {"accumulate": 3, "steps_an_epoch": 2.0}
    rehearse(module_of(unfreeze=1), batches_of(data), held_out_of(data), 1.0, steps=6, **settings)
    assert [n for n, _ in seen] == [3] * 6
    learning = [sum(rate > 0 for rate in rates) for _, rates in seen]
    assert learning == [2, 2, 4, 4, 6, 6], "a stage an epoch, weights and biases"


def test_accumulated_batches_step_as_one_batch_does(data: ImageFolderData) -> None:
    inputs, labels = next(iter(batches_of(data)(0)))
    n = len(labels) // 2 * 2
    halves = [(inputs[: n // 2], labels[: n // 2]), (inputs[n // 2 : n], labels[n // 2 : n])]
    ends = []
    for batches in ([(inputs[:n], labels[:n])], halves):
        module = module_of(optimizer="sgd")
        module.eval()  # no dropout
        optimizer = module.make_optimizer()
        loss = tryout.learn(module, optimizer, batches, "32-true", None)
        ends.append((loss, copied(module.state_dict())))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-5)
    for name, value in ends[0][1].items():
        torch.testing.assert_close(value, ends[1][1][name], atol=1e-6, rtol=1e-4)


def test_the_lowest_loss_wins_and_the_strategys_own_rate_a_tie() -> None:
    assert lowest([of(1.0, 0.50), of(0.3, 0.48), of(9.0, 0.2)]).multiplier == 9.0
    assert lowest([of(1.0, 0.5), of(0.1, 0.5)]).multiplier == 1.0
    assert lowest([of(1.0, math.inf), of(0.1, math.inf)]).multiplier == 1.0, "nothing was a number"


def test_parts_are_joined_image_by_image() -> None:
    parts = [of(3.0, 0.2, n=3), of(3.0, 0.6, n=1)]
    assert Rehearsal.joined(parts).loss == pytest.approx(0.3) and len(Rehearsal.joined(parts).hits) == 4


def test_the_range_test_takes_its_last_word_from_them(tmp_path: Any) -> None:
    points = [RangePoint(10 ** (n / 3 - 3), 1.0, loss) for n, loss in enumerate([0.7] * 6 + [0.6, 0.5, 0.6, 0.9])]
    found = settled(suggestion(points, 0.01), [of(1.0, 0.5), of(3.0, 0.3), of(9.0, math.inf)], 40)
    assert found.multiplier == 3.0 and found.suggested_lr == 0.03
    told = "; 40 steps of training came to a loss, at the best temperature, of 0.500 at 1 times, 0.300 at 3 times, "
    assert found.reason.endswith(told + "inf at 9 times")
    json.dumps([one.to_dict() for one in found.rehearsals], allow_nan=False)
    range_chart(found, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 5000
