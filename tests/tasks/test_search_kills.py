"""A search that is killed loses no finished trial; two processes share the work of one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import toolkit
from tests.killing import read_until
from tests.photos import make_photos

ROOT = Path(toolkit.__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = ["--model=mlp", "--hidden=16,8", "--epochs=6", "--batch_size=8", "--trials=12", "--image_size=16"]
# Says what a process judges before it does, and waits a little: a kill then comes in mid-trial.
DRIVER = """\
import sys
import time
from toolkit.cli import main
from toolkit.tasks.search_baseline import BaselineTrials

judge = BaselineTrials.judge


def judge_and_say(self, options, fold, short):
    print("fold", fold, file=sys.stderr, flush=True)
    time.sleep(0.05)
    return judge(self, options, fold, short)


BaselineTrials.judge = judge_and_say
if __name__ == "__main__":
    sys.exit(main())
"""


class Searches:
    """Photographs, and how a search of them is started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = make_photos(folder / "photos", {"cat": 20, "dog": 20, "owl": 20})
        (folder / "driver.py").write_text(DRIVER)

    def start(self, out: Path) -> subprocess.Popen[str]:
        words = ["search", str(self.photos), "--out", str(out), "--cache_dir", str(self.folder / "cache")]
        return subprocess.Popen(
            [sys.executable, str(self.folder / "driver.py"), *words, "--workers=0", "--device=cpu", *SETTINGS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )

    def finish(self, out: Path) -> None:
        process = self.start(out)
        said = process.communicate()[1]
        assert process.returncode == 0, said


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Searches:
    return Searches(tmp_path_factory.mktemp("kills"))


@pytest.fixture(scope="module")
def whole(searches: Searches) -> Path:
    searches.finish(searches.folder / "whole")
    return searches.folder / "whole"


def table(out: Path) -> list[dict[str, str]]:
    """Return the rows of trials.csv, but for the clock."""
    with open(out / "trials.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def found(out: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads((out / "search.json").read_text()).items() if key != "command"}


def assert_equal(out: Path, whole: Path) -> None:
    assert table(out) == table(whole)
    assert found(out) == found(whole)
    ours, theirs = (yaml.safe_load((folder / "best.yaml").read_text()) for folder in (out, whole))
    assert ours == theirs
    assert (out / "search.png").read_bytes() == (whole / "search.png").read_bytes()


def test_killed_again_and_again_it_ends_in_the_same_search(searches: Searches, whole: Path, tmp_path: Path) -> None:
    out, in_trial = tmp_path / "run", 0
    for marker in ("search for", "fold 2", "trial 3", "fold 1", "trial 8", "fold 0", "the best trials"):
        process = searches.start(out)
        said = read_until(process, marker)
        time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        in_trial += "fold" in said.splitlines()[-1]
        done = table(out) if (out / "trials.csv").exists() else []
        assert [row for row in done if row["state"] != "running"] == table(whole)[: len(done)][
            : sum(row["state"] != "running" for row in done)
        ]
    searches.finish(out)
    assert_equal(out, whole)
    assert in_trial >= 2, "at least two kills came in mid-trial"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_signals_end_with_their_code_and_the_search_goes_on(
    number: int, code: int, searches: Searches, whole: Path, tmp_path: Path
) -> None:
    process = searches.start(tmp_path / "run")
    read_until(process, "trial 4")
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == code, said
    assert "Traceback" not in said
    searches.finish(tmp_path / "run")
    assert_equal(tmp_path / "run", whole)


def test_two_processes_share_the_work(searches: Searches, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    both = [searches.start(out), searches.start(out)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    done = [[line.split()[1] for line in text.splitlines() if line.startswith("trial ")] for text in said]
    assert len(done[0]) + len(done[1]) == 12 and not set(done[0]) & set(done[1]), "every trial was run once"
    assert min(map(len, done)) >= 2, "both worked"
    rows = table(out)
    assert [row["number"] for row in rows] == [str(number) for number in range(12)]
    keys = ("stage", "lr", "l2", "dropout")
    ours, theirs = ([tuple(row[key] for key in keys) for row in part[:6]] for part in (rows, table(whole)))
    assert ours == theirs, "default and coarse trials are those of one process"
    sums = [text.count("are judged again") for text in said]
    assert sum(sums) <= 1, "the best is judged again by one of them"


def test_a_killed_one_of_two_leaves_its_trial_to_the_other(searches: Searches, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    both = [searches.start(out), searches.start(out)]
    read_until(both[0], "fold 1")
    both[0].send_signal(signal.SIGKILL)
    both[0].communicate()
    said = both[1].communicate()[1]
    assert both[1].returncode == 0, said
    assert [row["state"] for row in table(out)].count("running") == 0
    assert [row["number"] for row in table(out)] == [str(number) for number in range(12)]
