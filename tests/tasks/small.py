"""The main job at the smallest size that still means something: 32 px, a few photographs, one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.tasks.finetune import finetune
from toolkit.tasks.run import Run

SMALL: dict[str, Any] = {"image_size": 32, "workers": 0, "device": "cpu"}
TRAINED: dict[str, Any] = {**SMALL, "epochs": 2, "batch_size": 8}


def run(data: Path, out: Path, strategy: str = "head", **options: Any) -> Run:
    """Return a finished run with few epochs; all of the fine-tuning is kept, for so little would never be chosen."""
    settings = {**(SMALL if strategy in ("head", "auto") else TRAINED), "pictures": False}
    if strategy in ("partial", "full"):
        settings = {"mixing": 1.0, **settings}
    return finetune(str(data), out=str(out), strategy=strategy, **{**settings, **options})


def words(**options: Any) -> list[str]:
    """Return the small settings as words of a command line."""
    return [word for key, value in {**SMALL, **options}.items() for word in (f"--{key}", str(value))]
