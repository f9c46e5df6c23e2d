"""What a family's rule gives: the parts of a network; and a network before it becomes a Backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from toolkit.backbones.backbone import Layout
from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import SettingError

State = dict[str, Tensor]
SMALLEST_IMAGE_PX = 32  # the total stride of these families


class Parts(NamedTuple):
    """Stages in order, the axes between them, and the last Linear; their parameters are the network's own."""

    stages: tuple[nn.Module, ...]
    layout: Layout
    classifier: nn.Linear | None


@dataclass(frozen=True)
class Network:
    """A whole network, the rule that cuts it, and what its weights expect.

    adapt: turns other spellings of its state dict into its own. weights, digest: of the values in it now.
    """

    model: nn.Module
    split: Callable[[nn.Module], Parts]
    preprocessing: Preprocessing
    adapt: Callable[[State], State]
    weights: str = "random"
    digest: str = ""


def linear_or_none(module: nn.Module) -> nn.Linear | None:
    """Return the module if it is a Linear: networks without a classifier have an Identity there."""
    return module if isinstance(module, nn.Linear) else None


def chain(*modules: nn.Module) -> nn.Sequential:
    """Return the modules in a row, those that do nothing left out."""
    return nn.Sequential(*(module for module in modules if not isinstance(module, nn.Identity)))


def groups(modules: Iterable[nn.Module], opens: Callable[[nn.Module], bool]) -> list[list[nn.Module]]:
    """Return contiguous groups; a module for which `opens` holds begins a new one."""
    found: list[list[nn.Module]] = []
    for module in modules:
        if not found or opens(module):
            found.append([])
        found[-1].append(module)
    return found


def quarters(blocks: Sequence[nn.Module]) -> list[nn.Sequential]:
    """Return the blocks in four contiguous parts as equal as can be (fewer when there are fewer blocks)."""
    n = len(blocks)
    parts = min(4, n)
    return [nn.Sequential(*blocks[i * n // parts : (i + 1) * n // parts]) for i in range(parts)]


def check_image_size(name: str, image_size_px: int | None, multiple_px: int = 1) -> None:
    """Raise SettingError for an image size that the network cannot take, saying which ones it can."""
    if image_size_px is None or (image_size_px >= SMALLEST_IMAGE_PX and image_size_px % multiple_px == 0):
        return
    if multiple_px == 1:
        raise SettingError(f"{name}: image_size of at least {SMALLEST_IMAGE_PX} px expected, got {image_size_px}")
    smallest = -(-SMALLEST_IMAGE_PX // multiple_px) * multiple_px
    below = max(image_size_px // multiple_px * multiple_px, smallest)
    raise SettingError(
        f"{name}: image_size must be a multiple of its patch size, {multiple_px} px, from {smallest} px up; "
        f"got {image_size_px}, nearest: {below} and {below + multiple_px}"
    )
