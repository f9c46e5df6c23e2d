"""A verb that can be killed at chosen moments, and its undisturbed run to compare with."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.photos import make_photos

# Saves after every unit of steps instead of every minute, says so and waits a little (steps take milliseconds): a kill
# leaves checkpoints of mid-epoch behind. A unit of a baseline is two steps.
DRIVER = """\
import sys
import time
from toolkit.baselines import loading
from toolkit.cli import main
from toolkit.training import checkpoints

save = checkpoints.WholeCheckpointIO.save_checkpoint


def save_and_say(self, checkpoint, path, storage_options=None):
    save(self, checkpoint, path, storage_options)
    print("saved", checkpoint["global_step"], file=sys.stderr, flush=True)
    time.sleep(0.1)


loading.UNIT_STEPS = 2
checkpoints.SECONDS_BETWEEN_SAVES = 0.0
checkpoints.WholeCheckpointIO.save_checkpoint = save_and_say
if __name__ == "__main__":
    sys.exit(main())
"""


class Killed:
    """Photographs of three classes, 60 in all, a verb with its settings, and its undisturbed run."""

    def __init__(self, folder: Path, verb: str, settings: list[str]) -> None:
        self.verb, self.settings = verb, settings
        self.photos = make_photos(folder / "photos", {"cat": 20, "dog": 20, "owl": 20})
        self.driver = folder / "driver.py"
        self.driver.write_text(DRIVER)
        self.whole = folder / "whole"
        code, said = self.finish(self.command(self.whole, 0))
        assert code == 0, said

    def command(self, out: Path, workers: int) -> list[str]:
        """Return the words of a run with a cache of its own: it shall decode and extract, too."""
        folders = ["--out", str(out), "--cache_dir", f"{out}-cache"]
        return [self.verb, str(self.photos), *folders, "--workers", str(workers), "--device=cpu", *self.settings]

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, one thread a process."""
        return subprocess.Popen(
            [sys.executable, str(self.driver), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def finish(self, words: list[str]) -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it said."""
        process = self.start(words)
        said = process.communicate()[1]
        return process.returncode, said

    def assert_as_undisturbed(self, out: Path) -> None:
        ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (out, self.whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        for name in ("predictions.csv", "quarantine.csv", "confusion.csv"):
            assert (out / name).read_bytes() == (self.whole / name).read_bytes()
        assert history(out) == history(self.whole)
        assert not (out / "checkpoints").exists()


def history(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's history, but for its clock."""
    with open(run / "history.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def read_until(process: subprocess.Popen[str], marker: str | tuple[str, ...]) -> str:
    """Read stderr up to a line that begins with `marker` (or one of several), or to its end; return what was read."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(marker):
            break
    return "".join(lines)
