"""`toolkit cache`: a limit means the same as a flag, in a YAML file and in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

import toolkit
from tests.tasks.small import SMALL
from tests.test_cli import parsed
from toolkit.cli import main
from toolkit.tasks.cache import _bytes as size_in_bytes
from toolkit.tasks.cache import cache


@pytest.mark.parametrize(
    ("written", "size"),
    [("0", 0), ("'0'", 0), ("5000", 5000), ("5_000", 5000), ("1500.5", 1500), ("5GB", 5 * 10**9), ("null", None)],
)
def test_a_size_in_a_yaml_file_is_what_it_is_as_a_flag(tmp_path: Path, written: str, size: int | None) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"limit: {written}\n")
    limit = parsed("cache", "--config", str(file))["limit"]
    assert limit is size is None or size_in_bytes(limit) == size
    if size is not None:
        flag = parsed("cache", "--limit", written.strip("'").replace("_", ""))["limit"]
        assert size_in_bytes(flag) == size


def test_a_limit_of_nothing_empties_the_cache(photo_folder: Path, tmp_path: Path) -> None:
    place, file = str(tmp_path / "cache"), tmp_path / "c.yaml"
    for limit in ("0", "0.0", "0B"):
        toolkit.extract_features(str(photo_folder), cache_dir=place, **SMALL)
        assert cache(cache_dir=place).bytes > 10_000
        file.write_text(f"limit: {limit}\n")
        assert main(["cache", "--config", str(file), "--cache_dir", place]) == 0
        assert cache(cache_dir=place).bytes == 0


@pytest.mark.parametrize("written", ["-1", "-0.5", "false", "true", ".inf", ".nan", "[0]", "{}", "many", "2024-01-01"])
def test_what_is_no_size_is_one_line(tmp_path: Path, written: str, capsys: pytest.CaptureFixture[str]) -> None:
    digests = tmp_path / "cache/contents/0.safetensors"
    digests.parent.mkdir(parents=True)
    digests.write_bytes(bytes(2000))
    file = tmp_path / "c.yaml"
    file.write_text(f"limit: {written}\n")
    assert main(["cache", "--config", str(file), "--cache_dir", str(tmp_path / "cache")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and len(told.splitlines()) == 1 and "limit: " in told and len(told) < 300
    assert digests.exists()
