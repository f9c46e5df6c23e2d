"""What the plan gives away: cells that are set up so that the answer is known; and a real cell from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.photos import make_photos

pytestmark = pytest.mark.slow


def cell(data: str, n: int, seeds: int, head: float, **accuracies: float) -> list[dict[str, Any]]:
    """Return the lines of a cell whose strategies reach so much with every seed."""
    facts = {
        "n_train": n,
        "n_val": 100,
        "n_test": 0,
        "n_classes": 5,
        "min_per_class": n // 5,
        "median_per_class": n / 5,
    }
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        where = {"data": data, "variant": "plain", "size": n, "image_size": 64, "seed": seed, "n_train": n}
        probes = {"7": [head, 0.02], "6+7": [head, 0.02]}
        rows.append(
            {
                **where,
                "strategy": "evidence",
                "similarity": {"a": 0.8, "b": 0.5}.get(data, 0.2),
                "facts": facts,
                "probes": probes,
                "accuracy": head,
            }
        )
        rows += [
            {**where, "strategy": name, "accuracy": value, "n": 100}
            for name, value in ({"head": head} | accuracies).items()
        ]
    return rows


def regret(bench: Path, rows: list[dict[str, Any]]) -> str:
    (bench / "results/plan_regret.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run([sys.executable, bench / "regret", "--fit"], capture_output=True, text=True, check=True)
    return done.stdout


def summary(page: str, rule: str) -> float:
    (line,) = [line for line in page.splitlines() if line.startswith(f"- {rule}: ")]
    return float(line.split(": ")[1].split()[0])


def test_where_one_strategy_is_always_best_the_plan_finds_it_and_others_pay(bench: Path) -> None:
    rows = []
    for data in ("a", "b", "c"):
        for n in (200, 800):
            rows += cell(data, n, 4, 0.80, late=0.80, partial=0.90, full=0.80)
    page = regret(bench, rows)
    assert summary(page, "plan") == 0.0
    assert summary(page, "always head") == summary(page, "always full") == 10.0
    assert "6 cells, 4 to 4 seeds each" in page and "off by 0.0 points" in page
    assert '"partial": (0.500, 0.000, 0.000)' in page
    with Image.open(bench / "results/regret.png") as picture:
        assert min(picture.size) > 100


def test_a_data_set_is_judged_by_what_the_others_teach(bench: Path) -> None:
    rows = []
    for data, full in (("a", 0.90), ("b", 0.90), ("odd", 0.70)):
        for n in (200, 800):
            rows += cell(data, n, 2, 0.80, late=0.80, partial=0.80, full=full)
    page = regret(bench, rows)
    (line,) = [line for line in page.splitlines() if line.startswith("| odd | plain | 200 ")]
    cells = [one.strip() for one in line.strip("|").split("|")]
    assert cells[9:] == ["full", "10.0 ± 0.0", "0.0 ± 0.0", "10.0 ± 0.0"]


def test_a_single_seed_judges_nothing(bench: Path) -> None:
    rows = cell("a", 200, 1, 0.8, late=0.8, partial=0.8, full=0.9) + cell(
        "b", 200, 1, 0.8, late=0.8, partial=0.8, full=0.9
    )
    page = regret(bench, rows)
    assert "- plan: " not in page and not (bench / "results/regret.png").exists()


def test_a_cell_from_photographs_to_results(bench: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", {"cat": 12, "dog": 12, "owl": 12})
    command = [sys.executable, bench / "plan_regret", photos, "--sizes", "12", "--seeds", "0", "--variants", "shifted"]
    command += ["--image_size", "32", "--cache_dir", tmp_path / "cache"]
    command += ["--strategies", "evidence", "last", "head", "auto_head", "late", "full"]
    subprocess.run(command, check=True, capture_output=True)
    rows = [json.loads(line) for line in (bench / "results/plan_regret.jsonl").read_text().splitlines()]
    assert [row["strategy"] for row in rows] == ["evidence", "last", "head", "auto_head", "late", "full"]
    assert all(row["n_train"] == 12 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert [row.get("cut") for row in rows] == [None, 8, 8, 8, 6, 0]
    subprocess.run(command, check=True, capture_output=True)
    assert len((bench / "results/plan_regret.jsonl").read_text().splitlines()) == len(rows)  # nothing is run again
