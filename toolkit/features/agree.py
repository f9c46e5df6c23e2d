"""Whether stages that were made faster still give the numbers that they gave."""

from __future__ import annotations

from torch import Tensor, nn

TOLERANCE = 1e-4  # relative; folding multiplies in another order


def agrees(stage: nn.Module, activation: Tensor, expected: Tensor) -> bool:
    """Return whether a stage makes what is expected of an activation, but for rounding."""
    try:
        found = stage(activation.clone())
    except Exception:  # whatever a module does that misses its norm
        return False
    return is_close(found, expected)


def is_close(found: object, expected: Tensor) -> bool:
    """Return whether something is a tensor that equals what is expected, but for rounding."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    return bool((found - expected).norm() <= TOLERANCE * expected.norm())  # not so for NaN
