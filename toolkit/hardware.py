"""Which device and precision a run uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from toolkit.errors import SettingError, unknown_name

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def resolve_device(name: str) -> torch.device:
    """Return the device for "auto" (CUDA, then Apple's MPS, then CPU) or for a name that torch knows."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise unknown_name("device", name, ("auto", "cpu", "cuda", "cuda:0", "mps"))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingError(f"device {name!r}: expected a form such as cpu, cuda or cuda:1") from None
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if (device.index or 0) >= present:
        raise SettingError(f"device {name!r}: this machine has {present} device(s) of that kind; use --device cpu")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Return a Lightning precision for "auto": bfloat16 autocast on CUDA devices that have it, else float32."""
    if name == "auto":
        return "bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"
    if name not in PRECISIONS:
        raise unknown_name("precision", name, ("auto", *PRECISIONS))
    if name == "16-mixed" and device.type == "cpu":
        raise SettingError("precision '16-mixed' needs a GPU; use bf16-mixed or 32-true on a CPU")
    return name


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context of a precision for forward passes outside the Trainer."""
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "32-true")


@contextmanager
def true_float32() -> Iterator[None]:
    """Have a GPU convolve float32 in float32, also as a decorator.

    By itself cuDNN takes TF32, which keeps 10 bits of a factor's 23: EfficientNet-Lite0's features then differ from a
    CPU's by 2e-3 (relative; H200, scripts/gpu_check).
    """
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
