"""Stochastic depth for the blocks that have a place for it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

PLACES = ("drop_path", "drop_path1", "drop_path2", "stochastic_depth")  # timm's and torchvision's names


def set_drop_path(stages: Iterable[nn.Module], share: float) -> int:
    """Let the skippable branches of blocks be skipped, image by image, in training; return how many there are.

    The last one is skipped with probability `share`, the k-th of n with share · k / n (Huang et al. 2016, "Deep
    networks with stochastic depth"). Changes the blocks in place; parameters and state stay as they are.
    """
    from torchvision.ops import StochasticDepth

    places = skippable(stages)
    for number, (block, name) in enumerate(places, start=1):
        setattr(block, name, StochasticDepth(share * number / len(places), "row"))
    return len(places)


def skippable(stages: Iterable[nn.Module]) -> list[tuple[nn.Module, str]]:
    """Return the blocks that can be skipped, in order, and the name of the place where each has that decided."""
    return [
        (block, name)
        for stage in stages
        for block in stage.modules()
        for name in PLACES
        if hasattr(block, name) and _skips(block)
    ]


def _skips(block: nn.Module) -> bool:
    """Return whether there is a way around the block: some families have both kinds."""
    return bool(getattr(block, "has_skip", getattr(block, "use_res_connect", True)))
