"""Which device and precision a run uses."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from toolkit.errors import SettingError, unknown_name

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_IMPORTED_IN = os.getpid()


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device for "auto" (CUDA, then Apple's MPS, then CPU) or for a name that torch knows."""
    name = str(name)
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
    if name == "cuda":  # as tensors name it: else what lies there seems to lie elsewhere
        return torch.device("cuda", torch.cuda.current_device())
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


def one_thread_where_forked() -> None:
    """Keep torch's operations on one thread in a process that was forked after this module was imported.

    OpenMP's threads do not come along, and whoever waits for them waits for ever. (torch's loaders do so as well.)
    """
    if os.getpid() != _IMPORTED_IN:
        torch.set_num_threads(1)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context of a precision for forward passes outside the Trainer."""
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "32-true")


_float32_lock = threading.Lock()
_float32_users = 0
_float32_before: tuple[bool | None, str | None] = None, None  # of convolutions on a GPU, of products of matrices


@contextmanager
def true_float32() -> Iterator[None]:
    """Have float32 computed in float32, also as a decorator; may be nested, and used by several threads.

    By itself cuDNN takes TF32, which keeps 10 bits of a factor's 23: EfficientNet-Lite0's features then differ from a
    CPU's by 2e-3 (relative; H200, scripts/gpu_check). And after `torch.set_float32_matmul_precision("medium")`, which
    Lightning advises, products of matrices are not float32's either, on a CPU as well: what is stored would depend on
    it. The settings are the process's: they end with the last of those that asked for it. A program that has told torch
    by its newer switches, one by one, has chosen already and is left alone.
    """
    global _float32_users, _float32_before
    with _float32_lock:
        if _float32_users == 0:
            _float32_before = _allow_tf32(False), _multiply_in("highest")
        _float32_users += 1
    try:
        yield
    finally:
        with _float32_lock:
            _float32_users -= 1
            if _float32_users == 0:
                tf32, precision = _float32_before
                if tf32 is not None:
                    _allow_tf32(tf32)
                if precision is not None:
                    _multiply_in(precision)


def _allow_tf32(allowed: bool) -> bool | None:
    """Set cuDNN's switch and return what it was; None, and nothing is set, where torch says that it no longer holds."""
    try:
        before = bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # the switches of its operators differ
        return None
    torch.backends.cudnn.allow_tf32 = allowed
    return before


def _multiply_in(precision: str) -> str | None:
    """Set how exactly matrices of float32 are multiplied and return what it was; None, and nothing is set, where that
    is so already or torch's newer switches say it."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the switches of its backends differ
        return None
    if before == precision:
        return None
    torch.set_float32_matmul_precision(precision)
    return before
