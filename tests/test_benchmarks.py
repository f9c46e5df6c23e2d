"""The page and the picture of the benchmarks are made from their results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.slow


ABOUT = {"cores": 2, "cpu": "Some(R) CPU", "torch": "2.0", "date": "2000-01-01"}


def report(bench: Path, **results: list[dict[str, Any]]) -> str:
    for name, rows in results.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (bench / "results" / f"{name}.jsonl").write_text(text)
    done = subprocess.run([sys.executable, bench / "report"], capture_output=True, text=True, check=True)
    return done.stdout


def row_of(page: str, *words: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if all(word in line for word in words)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ratios_are_taken_within_a_round(bench: Path) -> None:
    rows = []
    for number, (own, other) in enumerate([(1.0, 10.0), (10.0, 20.0), (2.0, 8.0)]):  # ratios 10, 2, 4
        for name, seconds in (("toolkit, first run", own), ("a peer", other)):
            row = {"data": "cats", "n_train": 3, "n_val": 2, "seed": 0, "round": number, "contestant": name}
            rows.append({**row, "process_s": seconds, "train_s": seconds / 2, "accuracy": 0.5, "about": ABOUT})
    page = report(bench, frozen=rows)
    assert row_of(page, "a peer")[2:] == ["a peer", "10.0", "5.0", "0.500", "4.00 ×", "3"]
    assert row_of(page, "toolkit, first run")[3:] == ["2.0", "1.0", "0.500", "1.00 ×", "3"]
    assert "2 cores of Some(R) CPU, torch 2.0, 2000-01-01" in page
    assert (bench / "results/README.md").read_text().strip() == page.strip()
    with Image.open(bench / "results/speed.png") as picture:
        assert min(picture.size) > 200


def test_samplers_are_held_against_each_other_seed_by_seed(bench: Path) -> None:
    rows = []
    for seed, luck in enumerate((0.0, 0.1)):
        for sampler, test in (("coarse_to_fine", 0.80), ("tpe", 0.82)):
            found = dict.fromkeys(("score", "third", "test_without_final", "default_score", "default_third"), 0.7)
            found |= {"n_trials": 30, "pruned": 9, "epochs": 500.0, "test": test + luck, "default_test": 0.7 + luck}
            rows.append({"problem": "mlp", "sampler": sampler, "seed": seed, **found})
    (bench / "results/search.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, bench / "search", "--table"]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert row_of(page, "| tpe")[2:6] == ["2", "30", "9", "500"]
    assert row_of(page, "| tpe")[8] == "0.8700"
    assert row_of(page, "| tpe")[-2:] == ["+12.00 ± 0.00", "-2.00 ± 0.00"]
    assert row_of(page, "| coarse_to_fine")[-2:] == ["+10.00 ± 0.00", ""]
    assert row_of(page, "default settings")[8] == "0.7500"


def test_machines_are_kept_apart(bench: Path) -> None:
    growth = [
        {"images": 1000, "views": 1, "size": 32, "round": 0, "process_s": seconds, "extract_s": 1.0, "fit_s": 0.0}
        | {"own_MB": 10.0, "with_children_MB": 10.0, "about": {**ABOUT, "cpu": cpu}}
        for cpu, seconds in (("slow", 8.0), ("quick", 2.0))
    ]
    page = report(bench, growth=growth)
    assert row_of(page, "| slow |")[3] == "8.0"
    assert row_of(page, "| quick |")[3] == "2.0"
    common = "import common; import sys; sys.exit(not common.is_there('growth', {'images': 1000}, on_this_cpu=%s))"
    told = [
        subprocess.run([sys.executable, "-c", common % here], cwd=bench, check=False).returncode
        for here in (False, True)
    ]
    assert told == [0, 1]  # there is one, but none of this machine


def test_other_tables_are_made_of_medians(bench: Path) -> None:
    tail = {"data": "cats", "epochs": "1", "views": None, "mixing": None, "n_train": 3, "n_val": 2}
    partial = [
        {**tail, "round": n, "cached": [n, n, 0.5], "live": [3 * n, 6 * n, 0.5], "about": ABOUT} for n in (1, 2, 3)
    ]
    growth = [
        {"images": 1000, "views": 2, "size": 32, "round": n, "process_s": n, "extract_s": n, "fit_s": 0.0}
        for n in (4, 6)
    ]
    growth = [{**row, "own_MB": 10.0, "with_children_MB": 12.0, "about": ABOUT} for row in growth]
    page = report(bench, partial=partial, growth=growth)
    assert row_of(page, "cats", "live")[3:] == ["6.0", "12.0", "0.500", "3.00 ×", "6.00 ×", "3"]
    assert row_of(page, "| 1000 |") == ["Some", "1000", "2", "5.0", "2.50", "10", "12", "2"]
    assert not (bench / "results/speed.png").exists()
