"""Killed anywhere and resumed, a run ends in the weights and the predictions of the undisturbed one."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.photos import make_photos
from tests.training.tiny import assert_equal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Saves after every step instead of every minute, says so and waits a little (steps from the store take milliseconds):
# a kill leaves checkpoints of mid-epoch behind.
DRIVER = """\
import sys
import time
from toolkit.cli import main
from toolkit.training import checkpoints

save = checkpoints.WholeCheckpointIO.save_checkpoint


def save_and_say(self, checkpoint, path, storage_options=None):
    save(self, checkpoint, path, storage_options)
    print("saved", checkpoint["global_step"], file=sys.stderr, flush=True)
    time.sleep(0.1)


checkpoints.SECONDS_BETWEEN_SAVES = 0.0
checkpoints.WholeCheckpointIO.save_checkpoint = save_and_say
if __name__ == "__main__":
    sys.exit(main())
"""
SETTINGS = [
    "--strategy=partial",
    "--image_size=32",
    "--epochs=4",
    "--batch_size=8",
    "--val=0.25",
    "--device=cpu",
]


class Work:
    """A folder with photographs, the driver, and the undisturbed run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = make_photos(folder / "photos", {"cat": 20, "dog": 20, "owl": 20})
        self.driver = folder / "driver.py"
        self.driver.write_text(DRIVER)
        self.whole = folder / "whole"
        code, said = self.finish(self.command(self.whole, 0))
        assert code == 0, said

    def command(self, out: Path, workers: int) -> list[str]:
        return ["finetune", str(self.photos), "--out", str(out), "--workers", str(workers), *SETTINGS]

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        """Start the command in a process group of its own, one thread a process."""
        return subprocess.Popen(
            [sys.executable, str(self.driver), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def finish(self, words: list[str]) -> tuple[int, str]:
        """Run the command to its end; return its exit code and what it said."""
        process = self.start(words)
        said = process.communicate()[1]
        return process.returncode, said

    def assert_as_undisturbed(self, out: Path) -> None:
        assert_equal(*(load_file(run / "model" / "model.safetensors") for run in (out, self.whole)))
        for name in ("predictions.csv", "quarantine.csv", "confusion.csv"):
            assert (out / name).read_bytes() == (self.whole / name).read_bytes()
        assert history(out) == history(self.whole)
        assert not (out / "checkpoints").exists()


def history(run: Path) -> list[dict[str, str]]:
    with open(run / "history.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    return Work(tmp_path_factory.mktemp("kills"))


def read_until(process: subprocess.Popen[str], marker: str | tuple[str, ...]) -> str:
    """Read stderr up to a line that begins with `marker` (or one of several), or to its end; return what was read."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(marker):
            break
    return "".join(lines)


# What stderr shows when a part begins: nothing (imports, scan), the manifest (extraction), the features' count (head,
# plan; not shown where the killed run had stored them all), the table of rates (the first steps), a save, an epoch's
# row (saving it), the steps' count (scoring). An epoch has 6 steps.
MOMENTS: dict[int, list[str | tuple[str, ...]]] = {
    0: ["", "60 images", ("features:", "plan:"), "part ", "saved 9", "epoch 3:", "training:"],
    2: ["60 images", "part ", "saved 4", "epoch 2:", "saved 20"],
}


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_again_and_again(work, tmp_path, workers):
    chance = random.Random(workers)
    out = tmp_path / "run"
    words = [*work.command(out, workers), "--cache_dir", str(tmp_path / "cache")]  # its own: it shall extract, too
    killed_in_epoch = 0
    for marker in MOMENTS[workers]:
        process = work.start(words)
        if marker:
            read_until(process, marker)
        time.sleep(chance.uniform(0.0, 0.2) if marker else chance.uniform(0.5, 3.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        checkpoint = out / "checkpoints" / "last.ckpt"
        if checkpoint.exists():
            step = torch.load(checkpoint, weights_only=True)["global_step"]
            killed_in_epoch += step % 6 != 0
        if not (out / "config.yaml").exists():
            code, said = work.finish(["finetune", "--resume", str(out)])
            assert code == 1 and "holds no run" in said and "Traceback" not in said
        else:
            words = ["finetune", "--resume", str(out)]
    assert words[1] == "--resume"
    code, said = work.finish(words)
    assert code == 0, said
    work.assert_as_undisturbed(out)
    assert killed_in_epoch, "at least one resume began in mid-epoch"
    code, said = work.finish(words)
    assert code == 0 and "nothing to do" in said


@pytest.mark.parametrize(
    ("number", "code", "workers"), [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 2)], ids=["SIGTERM", "SIGINT"]
)
def test_signals_end_with_their_code_after_a_checkpoint(work, tmp_path, number, code, workers):
    """SIGINT as a terminal sends it: to the whole group, decoding processes too."""
    out = tmp_path / "run"
    process = work.start(work.command(out, workers))
    read_until(process, "saved 8")
    os.killpg(process.pid, number) if workers else process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == code
    assert "checkpoint saved" in said and "Traceback" not in said
    assert (out / "checkpoints" / "last.ckpt").is_file() and not (out / "metrics.json").exists()
    code, said = work.finish(["finetune", "--resume", str(out)])
    assert code == 0, said
    work.assert_as_undisturbed(out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_signals_before_training_end_with_their_code(work, tmp_path, number, code):
    out = tmp_path / "run"
    process = work.start(work.command(out, 2))
    read_until(process, "60 images")
    os.killpg(process.pid, number)
    said = process.communicate()[1]
    assert process.returncode == code, said
    assert ("stopped" if number == signal.SIGTERM else "interrupted") in said
    assert "toolkit/cli.py" not in said, "no traceback of ours (torch may complain of an iterator that was half made)"
