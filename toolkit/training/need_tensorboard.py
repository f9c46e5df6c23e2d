"""Whether TensorBoard is here, asked before any work and without importing anything."""

from __future__ import annotations

import importlib.util

from toolkit.errors import SettingError


def need_tensorboard() -> None:
    """Raise SettingError where the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise SettingError("track: tensorboard is not installed; pip install 'transfer-toolkit[track]', or remove it")
