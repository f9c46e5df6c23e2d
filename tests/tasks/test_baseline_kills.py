"""A baseline that is killed anywhere and resumed ends in the weights and the tables of the undisturbed run."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from tests.killing import Killed, read_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = ["--hidden=16,8", "--batchnorm", "--dropout=0.3", "--schedule=cosine", "--epochs=4", "--batch_size=8"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return Killed(tmp_path_factory.mktemp("kills"), "baseline", SETTINGS)


def test_killed_again_and_again(work: Killed, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words, in_mid_epoch = work.command(out, 0), 0
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
def test_signals_end_with_their_code_after_a_checkpoint(work: Killed, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "run"
    process = work.start(work.command(out, 0))
    read_until(process, "saved 8")
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == code, said
    assert "checkpoint saved" in said and "Traceback" not in said
    code, said = work.finish(["baseline", "--resume", str(out)])
    assert code == 0, said
    work.assert_as_undisturbed(out)
