"""A mapped tensor: a file that nobody sees, and an error before the work where there is no room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolkit.errors import ArtifactError
from toolkit.features import mapped as module
from toolkit.features.mapped import mapped


def test_mapped_tensors_leave_nothing_and_say_when_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = mapped((4, 3), torch.float32, tmp_path)
    tensor[2] = 1.5
    assert tensor.sum() == 4.5 and not list(tmp_path.iterdir())
    assert mapped((0, 3), torch.uint8, tmp_path).shape == (0, 3)

    def full(*arguments: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(ArtifactError, match="no room for 12 MB; make room, or choose another --cache_dir"):
        mapped((1000, 3000), torch.float32, tmp_path)
