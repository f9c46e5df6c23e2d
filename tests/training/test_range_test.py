"""The range test: one factor for all groups, everything as it was to the bit, and a suggestion from the curve."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.training.tiny import assert_equal, copied, folder_data, tiny_backbone
from toolkit.data.datamodule import ImageFolderData
from toolkit.plan import FreezeSpec, Recipe
from toolkit.training.checkpoints import random_state
from toolkit.training.fit import FitSettings, fit
from toolkit.training.module import TransferModule
from toolkit.training.range_chart import range_chart, range_csv
from toolkit.training.range_test import RangePoint, range_test, smoothed, suggestion


def module_of(n_classes: int = 3, **recipe: Any) -> TransferModule:
    torch.manual_seed(0)
    spec = FreezeSpec.at_cut(4, 1)
    return TransferModule(tiny_backbone(), n_classes, spec=spec, recipe=Recipe(**{"lr": 0.02, **recipe}))


def batches_of(data: ImageFolderData) -> Any:
    loader = folder_data(Path(data.manifest.root), workers=0).train_dataloader()

    def of(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            yield batch.inputs, batch.labels

    return of


def held_out_of(data: ImageFolderData) -> list[tuple[Tensor, Tensor]]:
    return [(batch.inputs, batch.labels) for batch in data.val_dataloader()]


@pytest.fixture
def data(tmp_path: Path) -> ImageFolderData:
    return folder_data(tmp_path / "photos", workers=0)


RECIPES: list[dict[str, Any]] = [
    {},
    {"optimizer": "sgd", "mixup": 0.4, "decay_towards": "start"},
    {"batchnorm": "moving", "cutmix": 1.0},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=["adamw", "sgd", "moving norms"])
def test_everything_is_as_it_was_to_the_bit(data: ImageFolderData, recipe: dict[str, Any]) -> None:
    module = module_of(**recipe)
    module.train()
    module.network.stages[2].eval()
    optimizer = module.make_optimizer()
    inputs, labels = next(iter(batches_of(data)(0)))
    for _ in range(3):  # a state that is worth something
        optimizer.zero_grad()
        torch.autograd.backward(module.batch_loss(inputs, labels))
        optimizer.step()
    optimizer.param_groups[0]["lr"] *= 0.5  # as a schedule has left it
    state, gradients = (
        copied(module.state_dict()),
        [None if p.grad is None else p.grad.clone() for p in module.parameters()],
    )
    modes, drawn = [part.training for part in module.modules()], random_state()
    known = optimizer.state_dict()
    moments = {k: {n: v.clone() for n, v in one.items() if isinstance(v, Tensor)} for k, one in known["state"].items()}
    groups = [dict(group) for group in known["param_groups"]]

    found = range_test(module, batches_of(data), held_out_of(data), optimizer=optimizer, steps=12, low=0.1, high=10)

    assert len(found.points) == 12 and len({point.train_loss for point in found.points}) > 6, "it did train"
    assert_equal(copied(module.state_dict()), state)
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
    assert [part.training for part in module.modules()] == modes
    after = optimizer.state_dict()
    assert [dict(group) for group in after["param_groups"]] == groups
    assert after["state"].keys() == moments.keys()
    for number, one in moments.items():
        assert all(torch.equal(after["state"][number][name], value) for name, value in one.items())
    now = random_state()
    assert torch.equal(now["torch"], drawn["torch"])
    assert now["numpy"] == drawn["numpy"] and now["python"] == drawn["python"]


def test_random_draws_go_on_as_if_nothing_had_been(data: ImageFolderData) -> None:
    module = module_of()
    draws = []
    for tests in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if tests:
            range_test(module, batches_of(data), steps=4)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[1]


def test_a_training_after_it_is_the_one_without_it(tmp_path: Path, data: ImageFolderData) -> None:
    ends = []
    for name in ("plain", "tested"):
        own = folder_data(tmp_path / "photos", workers=0)
        module = module_of(mixup=0.3)
        torch.manual_seed(5)
        if name == "tested":
            range_test(module, batches_of(own), held_out_of(own), steps=20)
        (tmp_path / name).mkdir()
        settings = FitSettings(epochs=2, precision="32-true")
        history = tmp_path / name / "history.csv"
        fit(module, own, settings, folder=tmp_path / name, history=history, device=torch.device("cpu"))
        ends.append(copied(module.network.state_dict()))
    assert_equal(*ends)


def test_the_ratios_between_groups_stay_at_every_step(data: ImageFolderData, monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of()
    optimizer = module.make_optimizer()
    before = [group["lr"] for group in optimizer.param_groups]
    assert len(set(before)) == 3, "head, top and middle"
    during: list[list[float]] = []
    step = optimizer.step
    monkeypatch.setattr(
        optimizer, "step", lambda: during.append([group["lr"] for group in optimizer.param_groups]) or step()
    )
    found = range_test(module, batches_of(data), optimizer=optimizer, low=1e-3, high=10, steps=9, clip=None)
    assert [rates[-1] / before[-1] for rates in during] == pytest.approx([10 ** (-3 + n / 2) for n in range(9)])
    assert [point.multiplier for point in found.points] == pytest.approx([10 ** (-3 + n / 2) for n in range(9)])
    for rates in during:
        assert [rate / rates[-1] for rate in rates] == pytest.approx([rate / before[-1] for rate in before])
    assert [group["lr"] for group in optimizer.param_groups] == before


def test_it_ends_where_the_loss_is_no_number_and_puts_everything_back(data: ImageFolderData) -> None:
    module = module_of(optimizer="sgd", lr=1.0)
    state = copied(module.state_dict())
    found = range_test(module, batches_of(data), held_out_of(data), low=1, high=1e30, steps=40, clip=None)
    assert len(found.points) < 40
    assert_equal(copied(module.state_dict()), state)


def curve(losses: list[float], first: float = 1e-3, a_decade: int = 5) -> list[RangePoint]:
    return [RangePoint(first * 10 ** (n / a_decade), 1.0, loss) for n, loss in enumerate(losses)]


def test_the_lowest_place_of_the_curve_of_images_held_out_is_suggested() -> None:
    losses = [0.7] * 8 + [0.68, 0.66, 0.63, 0.61, 0.6, 0.605, 0.62, 0.7, 0.9, 1.5, 3.0, 3.0]
    found = suggestion(curve(losses), 0.01)
    assert found.multiplier == pytest.approx(1e-3 * 10 ** (12 / 5), rel=0.6)
    assert "was 0.700 at first" in found.reason and "\n" not in found.reason
    assert found.suggested_lr == float(f"{0.01 * found.multiplier:.3g}")


def test_a_single_lucky_look_decides_nothing() -> None:
    losses = [0.7] * 8 + [0.68, 0.66, 0.63, 0.61, 0.6, 0.605, 0.62, 0.7, 0.9, 1.5, 3.0, 3.0]
    lucky = [*losses[:2], 0.1, *losses[3:]]
    assert suggestion(curve(lucky), 0.01).multiplier == suggestion(curve(losses), 0.01).multiplier


def test_where_nothing_helps_it_is_a_share_of_what_harms() -> None:
    losses = [0.4 + 1e-4 * n for n in range(15)] + [0.5, 0.6, 0.9, 1.2, 1.5]
    found = suggestion(curve(losses), 0.01)
    assert 1e-2 < found.multiplier < 0.1, "harm begins at about 1"


def test_harm_that_nobody_saw_is_not_told() -> None:
    found = suggestion(curve([0.7 - 0.02 * n for n in range(20)]), 0.01)
    assert "no worse up to" in found.reason and "worse from" not in found.reason
    harmed = suggestion(curve([0.7] * 12 + [0.6, 0.9, 1.5, 2.0, 3.0, 3.0]), 0.01)
    assert "worse from" in harmed.reason


def test_without_images_held_out_a_tenth_of_the_lowest_place_of_training_is() -> None:
    points = [
        RangePoint(10 ** (n / 5), loss, None)
        for n, loss in enumerate([2.0] * 5 + [1.5, 1.0, 0.8, 0.7, 0.7, 0.7, 2, 4, 8, 9])
    ]
    found = suggestion(points, 1.0)
    assert 10 ** (6 / 5) < found.multiplier * 10 < 10 ** (10 / 5) and "training batches" in found.reason


def test_medians_smooth() -> None:
    assert smoothed([1, 1, 9, 1, 1, 1]) == [1, 1, 1, 1, 1, 1]
    assert suggestion([], 0.1).multiplier == 1


def test_table_and_picture(tmp_path: Path) -> None:
    found = suggestion(curve([0.7] * 8 + [0.6, 0.5, 0.6, 0.9, 2.0]), 0.01)
    lines = range_csv(found).splitlines()
    assert lines[:2] == ["multiplier,lr,train_loss,held_out_loss", "0.001,1e-05,1,0.7"] and len(lines) == 14
    for name, some in (("a", found), ("b", suggestion([RangePoint(1.0, 2.0, None)] * 3, 0.1))):
        range_chart(some, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300
