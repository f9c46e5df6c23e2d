"""Killed anywhere and resumed, a run ends in the weights and the predictions of the undisturbed one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.synchronize import Event

import pytest
import torch

from tests.killing import Killed, read_until
from toolkit.data import loading

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = [
    "--strategy=partial",
    "--image_size=32",
    "--mixing=0.5",  # the trial is killed in tests/tasks/test_trial.py
    "--epochs=4",
    "--batch_size=8",
    "--val=0.25",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return Killed(tmp_path_factory.mktemp("kills"), "finetune", SETTINGS)


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
    words = work.command(out, workers)
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
    ("number", "code", "workers"),
    [(signal.SIGTERM, 143, 0), (signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 2)],
    ids=["SIGTERM", "SIGTERM to the group", "SIGINT"],
)
def test_signals_end_with_their_code_after_a_checkpoint(work, tmp_path, number, code, workers):
    """As a terminal, `timeout` or a scheduler sends them: to the whole group, decoding processes too."""
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


@pytest.mark.parametrize("told", [1, 2])
def test_a_decoding_process_outlives_a_first_sigterm_for_a_while(told, monkeypatch):
    monkeypatch.setattr(loading, "GRACE_S", 2 if told == 1 else 1_000)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_wait_for_signals, args=(ready,))
    process.start()
    assert ready.wait(60)
    os.kill(process.pid, signal.SIGTERM)
    process.join(0.5)
    assert process.is_alive(), "the main process needs its batches up to a last checkpoint"
    if told == 2:
        os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == (-signal.SIGALRM if told == 1 else -signal.SIGTERM)


def _wait_for_signals(ready: Event) -> None:
    loading.leave_signals(0)
    ready.set()
    while True:
        time.sleep(1)
