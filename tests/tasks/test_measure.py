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


def two_kinds(folder: Path) -> Path:
    for kind, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            photo(kind, number).save(folder / name / f"{number}.png")
    return folder


def test_images_are_looked_at_once(tmp_path: Path) -> None:
    photos, options = two_kinds(tmp_path / "photos"), {**SMALL, "cache_dir": str(tmp_path / "cache")}
    first = plan_transfer(str(photos), **options)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(room, "similarity_of", lambda *_: pytest.fail("it is known"))
        again = plan_transfer(str(photos), **options)
    assert (again.similarity, again.facts) == (first.similarity, first.facts) and first.similarity is not None
    (remembered,) = tmp_path.glob("cache/models/*/measured/*.json")
    remembered.write_text(remembered.read_text().replace("measured_by", "measured_with"))
    assert plan_transfer(str(photos), **options).similarity == first.similarity


def test_what_could_not_be_measured_is_measured_the_next_time(tmp_path: Path) -> None:
    photos, options = two_kinds(tmp_path / "photos"), {**SMALL, "cache_dir": str(tmp_path / "cache")}

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("for a moment")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(room, "similarity_of", no_room)
        assert plan_transfer(str(photos), **options).similarity is None
    assert plan_transfer(str(photos), **options).similarity is not None


def test_images_that_change_or_go_meanwhile_are_not_remembered(tmp_path: Path) -> None:
    photos, options = two_kinds(tmp_path / "photos"), {**SMALL, "cache_dir": str(tmp_path / "cache"), "val": 0.1}
    own = room.clean_pixels
    for harm in ("changed", "gone"):
        hurt = photos / "cat" / "3.png"
        whole = hurt.read_bytes()

        def meanwhile(*given: object, how: str = harm, file: Path = hurt) -> torch.Tensor:
            photo(1, 5).save(file) if how == "changed" else file.unlink()
            return own(*given)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(room, "clean_pixels", meanwhile)
            plan_transfer(str(photos), **options)
        assert not list(tmp_path.glob("cache/models/*/measured/*.json")), harm
        hurt.write_bytes(whole)
