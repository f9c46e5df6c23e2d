"""What is measured before a plan: grey images by their pixels, the capacity of a device by its kind and cores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.photos import photo
from tests.tasks.small import SMALL
from toolkit.planning.page import page
from toolkit.tasks import measure as room
from toolkit.tasks.plan import plan_transfer


def test_grey_images_are_told_by_their_pixels_and_not_by_their_mode(tmp_path: Path) -> None:
    for kind, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(8):
            image = photo(kind, number)
            if number % 2:
                image = image.convert("L") if number % 4 == 1 else image.convert("L").convert("RGB")
            image.save(tmp_path / name / f"{number}.png")
    plan = plan_transfer(str(tmp_path), **SMALL)
    assert 0.3 <= plan.facts["grey_share"] <= 0.7 and plan.facts["tiny_share"] == 1.0
    assert "without colour" in page(plan)


def test_the_share_of_grey_ones() -> None:
    grey = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8).expand(-1, 3, -1, -1)
    coloured = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    assert room._grey_share(torch.cat([grey, coloured])) == 0.75
    assert room._grey_share(torch.empty(0, 3, 8, 8, dtype=torch.uint8)) is None


def test_capacity_is_a_count_of_cores_and_never_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    cpu = torch.device("cpu")
    assert room.capacity_of(cpu) == room.capacity_of(cpu) == 6 * room.CAPACITY_A_CORE
    assert room.capacity_of(torch.device("cuda")) > room.capacity_of(torch.device("mps")) > room.capacity_of(cpu)


def test_images_of_one_class_alone_in_a_sample_do_no_harm(tmp_path: Path) -> None:
    for name, count in (("cat", 12), ("dog", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.fromarray(np.full((20, 20, 3), number * 9, np.uint8)).save(tmp_path / name / f"{number}.png")
    plan = plan_transfer(str(tmp_path), **SMALL)
    assert plan.strategy == "head" and plan.predicted is not None
