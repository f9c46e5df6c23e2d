"""A baseline that is killed anywhere and resumed ends in the weights and the tables of the undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.photos import make_photos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Saves after every unit of two steps instead of every minute, and says so.
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
SETTINGS = ["--hidden=16,8", "--batchnorm", "--dropout=0.3", "--schedule=cosine", "--epochs=4", "--batch_size=8"]


class Work:
    """A folder with photographs, the driver, and the undisturbed run."""

    def __init__(self, folder: Path) -> None:
        self.photos = make_photos(folder / "photos", {"cat": 20, "dog": 20, "owl": 20})
        self.driver = folder / "driver.py"
        self.driver.write_text(DRIVER)
        self.whole = folder / "whole"
        code, said = self.finish(self.command(self.whole))
        assert code == 0, said

    def command(self, out: Path) -> list[str]:
        words = ["baseline", str(self.photos), "--out", str(out), "--workers=0", "--device=cpu", *SETTINGS]
        return [*words, "--cache_dir", f"{out}-cache"]

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self.driver), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def finish(self, words: list[str]) -> tuple[int, str]:
        process = self.start(words)
        said = process.communicate()[1]
        return process.returncode, said

    def assert_as_undisturbed(self, out: Path) -> None:
        ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (out, self.whole))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        for name in ("predictions.csv", "quarantine.csv", "confusion.csv"):
            assert (out / name).read_bytes() == (self.whole / name).read_bytes()
        assert not (out / "checkpoints").exists()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("kills"))


def read_until(process: subprocess.Popen[str], marker: str) -> None:
    """Read stderr up to a line that begins with `marker`, or to its end."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(marker):
            break


def test_killed_again_and_again(work: Work, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words, in_mid_epoch = work.command(out), 0
    for marker in ("60 images", "mlp on pixels", "saved 4", "saved 10", "epoch 3:", "training:"):
        process = work.start(words)
        read_until(process, marker)
        time.sleep(0.03)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        checkpoint = out / "checkpoints" / "last.ckpt"
        if checkpoint.exists():
            in_mid_epoch += torch.load(checkpoint, weights_only=True)["global_step"] % 6 != 0
        words = ["baseline", "--resume", str(out)]
    code, said = work.finish(words)
    assert code == 0, said
    work.assert_as_undisturbed(out)
    assert in_mid_epoch, "at least one resume began in mid-epoch"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_signals_end_with_their_code_after_a_checkpoint(work: Work, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "run"
    process = work.start(work.command(out))
    read_until(process, "saved 8")
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == code, said
    assert "checkpoint saved" in said and "Traceback" not in said
    code, said = work.finish(["baseline", "--resume", str(out)])
    assert code == 0, said
    work.assert_as_undisturbed(out)
