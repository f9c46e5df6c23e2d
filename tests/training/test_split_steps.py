"""Out of memory: the batch goes through in parts, and the step is the one that it would have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.tiny import SMALL, assert_equal, copied, folder_data, tiny_backbone
from toolkit.backbones.catalog import as_backbone
from toolkit.errors import ToolkitError
from toolkit.plan import Recipe
from toolkit.training.fit import FitSettings, fit
from toolkit.training.module import TransferModule
from toolkit.training.split_steps import is_out_of_memory

CPU_WORDS = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


class Fails(torch.autograd.Function):
    """Backward needs more memory than there is."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError(CPU_WORDS)


class Full(nn.Module):
    """Bears so many images at once in training, from its `first` batch on, in the way that is named."""

    def __init__(self, most: int, way: str, first: int = 1) -> None:
        super().__init__()
        self.most, self.way, self.first = most, way, first
        self.seen: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return inputs
        self.seen.append(len(inputs))
        if len(inputs) <= self.most or len(self.seen) < self.first:
            return inputs
        if self.way == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.way == "cpu":
            raise RuntimeError(CPU_WORDS)
        made: Tensor = Fails.apply(inputs)
        return made


def module_of(full: Full, **recipe: Any) -> TransferModule:
    """Return a module without dropout, whose steps differ by rounding alone."""
    torch.manual_seed(0)
    weights = recipe.pop("class_weights", None)
    stages = [*tiny_backbone(dropout=0).stages]
    stages[1] = nn.Sequential(stages[1], full)
    backbone = as_backbone(stages, preprocessing=SMALL)
    module = TransferModule(backbone, 3, cut=1, recipe=Recipe(**{"lr": 0.02, **recipe}), class_weights=weights)
    return module


def trained(folder: Path, full: Full, accumulate: int = 1, **recipe: Any) -> tuple[TransferModule, int]:
    folder.mkdir(exist_ok=True)
    data = folder_data(folder.parent / "photos", workers=0, batch_size=8)
    module = module_of(full, **recipe)
    torch.manual_seed(3)  # of blends
    settings = FitSettings(epochs=2, precision="32-true", accumulate=accumulate)
    steps = fit(module, data, settings, folder=folder, history=folder / "h.csv", device=torch.device("cpu"))
    return module, steps


RECIPES: list[dict[str, Any]] = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "mixup": 0.4, "label_smoothing": 0.1, "class_weights": [0.5, 1.0, 2.0]},
    {"optimizer": "sgd", "cutmix": 1.0, "accumulate": 2},
    {"optimizer": "sgd", "accumulate": 3, "class_weights": [0.5, 1.0, 2.0], "ema": 0.5},
]


@pytest.mark.parametrize(
    "recipe", RECIPES, ids=["plain", "weights and mixup", "cutmix, accumulated", "weights, average"]
)
@pytest.mark.parametrize("way", ["cuda", "cpu", "backward"])
def test_the_steps_are_those_of_whole_batches(
    tmp_path: Path, way: str, recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whole, steps = trained(tmp_path / "whole", Full(100, way), **recipe)
    full = Full(3, way, first=2)  # its second batch is the first one that fails
    split, split_steps = trained(tmp_path / "split", full, **recipe)
    assert steps == split_steps
    one, other = copied(whole.network.state_dict()), copied(split.network.state_dict())
    for key in one:
        assert torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-5), key
    assert any(not torch.equal(one[key], copied(module_of(Full(1, way)).network.state_dict())[key]) for key in one)
    said = capsys.readouterr().err
    assert said.count("note: out of memory with 8 images at once: from now on a batch goes through 4 at a time") == 1
    assert said.count("note: out of memory with 4 images at once: from now on a batch goes through 2 at a time") == 1
    assert max(full.seen[-6:]) <= 2 and sum(full.seen[-3:]) == 5, "of 21 images five are left for the last batch"
    rows = [(folder / "h.csv").read_text().splitlines() for folder in (tmp_path / "whole", tmp_path / "split")]
    for mine, theirs in zip(rows[0][1:], rows[1][1:], strict=True):
        numbers = [[float(cell) for cell in line.split(",")[:6]] for line in (mine, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3)


def test_dropout_is_drawn_anew_and_deterministically(tmp_path: Path) -> None:
    """However often a batch has failed, what is drawn for it and after it is the same."""
    ends = []
    for name, full in (("a", Full(2, "cpu")), ("b", Full(2, "cpu"))):
        torch.manual_seed(0)
        (tmp_path / name).mkdir()
        stages = [*tiny_backbone().stages]
        stages[1] = nn.Sequential(stages[1], full)
        module = TransferModule(as_backbone(stages, preprocessing=SMALL), 3, cut=1, recipe=Recipe(lr=0.02))
        if name == "b":
            module.on_fit_start()
            module._steps.at_once = 2
            module.on_fit_start = module.train  # type: ignore[method-assign]
        data = folder_data(tmp_path / "photos", workers=0, batch_size=8)
        torch.manual_seed(3)
        folder = tmp_path / name
        fit(
            module,
            data,
            FitSettings(epochs=1, precision="32-true"),
            folder=folder,
            history=folder / "h.csv",
            device=torch.device("cpu"),
        )
        ends.append(copied(module.network.state_dict()))
    assert_equal(*ends)


def test_a_resumed_run_knows_what_it_can_bear(tmp_path: Path) -> None:
    full = Full(2, "cpu")
    trained(tmp_path / "run", full)
    kept = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert kept["learning"]["at_once"] == 2
    again = module_of(Full(2, "cpu"))
    again._loaded = dict(kept["learning"])
    again.on_fit_start()
    assert again._steps.at_once == 2


def test_a_single_image_that_does_not_fit_ends_it_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="out of memory with a single image at once; take a smaller --image_size"):
        trained(tmp_path / "run", Full(0, "cuda"))


def test_other_errors_are_those_that_they_were(tmp_path: Path) -> None:
    class Wrong(Full):
        def forward(self, inputs: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError("shapes do not match")
            return inputs

    with pytest.raises(RuntimeError, match="shapes do not match"):
        trained(tmp_path / "run", Wrong(8, "cpu"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
