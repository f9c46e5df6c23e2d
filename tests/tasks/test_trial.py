"""Fine-tuning on trial: judged by training images alone, done again with all of them, and resumed to the bit."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.photos import make_photos
from toolkit.data.manifest import TEST, TRAIN, VAL, Manifest
from toolkit.errors import Interrupted
from toolkit.tasks import run as run_module
from toolkit.tasks import tail, tail_fit
from toolkit.tasks.finetune import finetune
from toolkit.tasks.run import Run
from toolkit.training.collapse import CollapsedError
from toolkit.training.mixing import NO_JUDGE, SHARES, WENT_ASTRAY, Verdict
from toolkit.training.module import TransferModule

NAMES = ("cat", "dog", "elk", "owl")
SETTINGS: dict[str, Any] = {
    "strategy": "partial",
    "cut": 1,
    "taps": [1],
    "image_size": 32,
    "workers": 0,
    "device": "cpu",
    "precision": "32-true",
    "epochs": 2,
    "batch_size": 8,
    "lr": 0.1,
}
HEAD: dict[str, Any] = {"strategy": "head", "cut": None, "epochs": None, "batch_size": None, "lr": None}
TRIAL_STEPS, STEPS = 2 * 7, 2 * 8  # 80 photographs: 16 validate, 64 train, 12 of them are held out of the trial

Modules = list[nn.Module]


def narrow(width: int = 2) -> Modules:
    """Return two stages whose end is too narrow to tell four classes apart by random features: there is much to gain.

    They are made anew for every run, which trains them in place.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        return [first, nn.Sequential(nn.Dropout(0.1), nn.Conv2d(8, width, 3, 2, 1), nn.BatchNorm2d(width))]


class Brittle(nn.Module):
    """Passes its input on while a number that every step makes larger by the rate is below a limit, then nothing."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.grown, self.limit = nn.Parameter(torch.zeros(())), limit

    def forward(self, inputs: Tensor) -> Tensor:
        grown = self.grown * 1
        if grown.requires_grad:
            grown.register_hook(lambda gradient: -torch.ones_like(gradient))
        return inputs * (grown < self.limit) + (grown - grown.detach())


def brittle() -> Modules:
    """Return two stages on which a head is right, and which break after some thirty steps at BREAKING's rate."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        return [first, nn.Sequential(nn.Dropout(0.1), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), Brittle(0.044))]


BREAKING: dict[str, Any] = {"lr": 0.02, "epochs": 5, "batch_size": 4, "augment": "none"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 4 classes with 20 photographs each."""
    return make_photos(tmp_path_factory.mktemp("trial") / "photos", dict.fromkeys(NAMES, 20))


def go(photos: Path, out: Path, stages: Callable[[], Modules] = narrow, **options: Any) -> Run:
    settings = {**SETTINGS, "cache_dir": str(photos.parent / "cache"), **options}
    return finetune(str(photos), out=str(out), backbone=stages(), **settings)  # type: ignore[arg-type]


def resumed(out: Path, stages: Callable[[], Modules] = narrow) -> Run:
    return finetune(resume=str(out), backbone=stages())  # type: ignore[arg-type]


def weights(run: Run) -> bytes:
    return (run.model_path / "model.safetensors").read_bytes()


def rows(run: Run, name: str = "history.csv") -> list[dict[str, str]]:
    """Return the rows of a run's history, but for its clock."""
    with open(run.path / name, encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def verdict_of(run: Run) -> Verdict:
    """Return the verdict as plan.json has it."""
    return Verdict.from_dict(json.loads((run.path / "plan.json").read_text())["verdict"])


def assert_same(one: Run, other: Run) -> None:
    """Assert that two runs ended in the same weights by the same verdict, and left no checkpoints."""
    assert weights(one) == weights(other)
    assert verdict_of(one) == verdict_of(other)
    for name in ("history.csv", "trial.csv"):
        assert (one.path / name).exists() == (other.path / name).exists()
        assert not (one.path / name).exists() or rows(one, name) == rows(other, name)
    assert (one.path / "predictions.csv").read_bytes() == (other.path / "predictions.csv").read_bytes()
    assert not (one.path / "checkpoints").exists() and not (other.path / "checkpoints").exists()


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, Manifest]]:
    """Return the list that grows by the folder, the rate and the Manifest of every training."""
    made: list[tuple[str, float, Manifest]] = []
    fit = tail_fit.fit

    def noted(module: Any, data: Any, *more: Any, folder: Path, **settings: Any) -> int:
        made.append((folder.name, module.recipe.lr, data.manifest))
        return fit(module, data, *more, folder=folder, **settings)

    monkeypatch.setattr(tail_fit, "fit", noted)
    return made


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every trial end in equal parts of both weights."""
    monkeypatch.setattr(tail, "judge", half_of(tail.judge))


def half_of(judge: Callable[..., Verdict]) -> Callable[..., Verdict]:
    return lambda *arguments: replace(judge(*arguments), share=0.5)


def test_what_gains_is_kept_said_and_written(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fits: list[Any]
) -> None:
    found = go(photos, tmp_path / "run", epochs=8)
    verdict = verdict_of(found)
    assert verdict.share > 0 and verdict.gain > verdict.gain_se > 0 and verdict.n == 12
    assert tuple(mixture.share for mixture in verdict.mixtures) == SHARES
    assert [name for name, *_ in fits] == ["trial", "checkpoints"]
    assert str(verdict).startswith("kept: ") and str(verdict) in str(found).splitlines()
    assert str(verdict) in capsys.readouterr().err.splitlines()
    assert str(resumed(found.path)) == str(found), "a finished run says the same"
    assert [row["epoch"] for row in rows(found)] == [str(epoch) for epoch in range(9)]
    assert [row["epoch"] for row in rows(found, "trial.csv")] == [str(epoch) for epoch in range(1, 9)]
    head = go(photos, tmp_path / "head", **HEAD)
    assert found.metrics["val"]["nll"] < head.metrics["val"]["nll"]


@pytest.mark.parametrize("strategy", ["partial", "full"])
def test_what_gains_nothing_leaves_the_head_to_the_bit(
    photos: Path, tmp_path: Path, strategy: str, fits: list[Any]
) -> None:
    cut = 1 if strategy == "partial" else None
    found = go(photos, tmp_path / "run", brittle, strategy=strategy, cut=cut, lr=1.0)
    assert verdict_of(found).share == 0 and [name for name, *_ in fits] == ["trial"]
    assert "fine-tuning steps aside: on 12 training images" in str(found)
    head = go(photos, tmp_path / "head", brittle, **{**HEAD, "head": found.plan.head})
    assert weights(found) == weights(head)
    assert found.metrics["val"]["accuracy"] == head.metrics["val"]["accuracy"]
    assert found.metrics["val"]["nll"] == pytest.approx(head.metrics["val"]["nll"], abs=1e-5)
    assert not (found.path / "checkpoints").exists()


@pytest.mark.usefixtures("half")
def test_the_trial_goes_without_the_images_that_judge_it(
    photos: Path, tmp_path: Path, fits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, taught = [], []
    judge, choose = tail.judge, tail.choose_head

    def seen(scores: Any, labels: Any, *more: Any) -> Verdict:
        judged.append(labels)
        return judge(scores, labels, *more)

    monkeypatch.setattr(tail, "judge", seen)

    def noted(features: Any, labels: Any, *more: Any, **settings: Any) -> Any:
        taught.append(labels)
        return choose(features, labels, *more, **settings)

    monkeypatch.setattr(tail, "choose_head", noted)
    go(photos, tmp_path / "run")
    (_, _, tried), (_, _, whole) = fits
    assert len(tried.rows(TRAIN)) == 52 and len(tried.rows(VAL)) == 12
    assert set(tried.rows(TRAIN)) | set(tried.rows(VAL)) == set(whole.rows(TRAIN))
    assert set(tried.rows(TEST)) == set(whole.rows(VAL))
    assert [labels.tolist() for labels in judged] == [tried.labels[tried.rows(VAL)].tolist()] * 2, "and confirms"
    assert [labels.tolist() for labels in taught] == [tried.labels[tried.rows(TRAIN)].tolist()]


def in_folders(root: Path, val: dict[str, str], n_val: int) -> Path:
    """Make root/train and root/val; val: the class whose photographs stand under each name."""
    make_photos(root / "train", dict.fromkeys(NAMES, 16))
    make_photos(root / "made", dict.fromkeys(NAMES, n_val), seed=1)
    for name, of in val.items():
        shutil.move(root / "made" / of, root / "val" / name)
    (root / "made").rmdir()
    return root


def test_validation_images_have_no_say(tmp_path: Path) -> None:
    right, turned = dict(zip(NAMES, NAMES, strict=True)), dict(zip(NAMES, NAMES[1:] + NAMES[:1], strict=True))
    found = [
        go(in_folders(tmp_path / name / "photos", val, n_val), tmp_path / name / "run", epochs=6)
        for name, val, n_val in (("plain", right, 5), ("wrong labels", turned, 5), ("fewer", right, 1))
    ]
    assert found[0].metrics["val"] != found[1].metrics["val"] and verdict_of(found[0]).share > 0
    for other in found[1:]:
        assert verdict_of(other) == verdict_of(found[0])
        assert weights(other) == weights(found[0])
        assert rows(other, "trial.csv") == rows(found[0], "trial.csv")


def test_what_is_kept_is_a_mixture_of_the_training_on_all_images(
    photos: Path, tmp_path: Path, undisturbed: Run
) -> None:
    given = go(photos, tmp_path / "run", mixing=0.5)
    assert verdict_of(undisturbed).share == 0.5 and weights(undisturbed) == weights(given)
    assert rows(undisturbed) == rows(given)


class Killed(BaseException):
    """Ends a run at once, without a checkpoint."""


def stop_at(step: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run end in its training step number `step`, counted from 0 through all of its trainings."""
    train, steps = TransferModule.training_step, iter(range(10**6))

    def stepped(self: TransferModule, batch: Any, number: int) -> Any:
        if next(steps) == step:
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, batch, number)

    monkeypatch.setattr(TransferModule, "training_step", stepped)


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that ends in equal parts of both weights."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tail, "judge", half_of(tail.judge))
        return go(photos, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    ("step", "how"),
    [
        (3, "kill"),
        (9, "signal"),
        (TRIAL_STEPS - 1, "signal"),
        (TRIAL_STEPS, "kill"),
        (TRIAL_STEPS + 11, "signal"),
        (TRIAL_STEPS + 11, "kill"),
        (TRIAL_STEPS + STEPS - 1, "signal"),
    ],
)
def test_stopped_in_a_step_and_resumed_a_run_ends_the_same(
    photos: Path, tmp_path: Path, undisturbed: Run, step: int, how: str
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        stop_at(step, how, patched)
        with pytest.raises((Interrupted, Killed)):
            go(photos, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "start.safetensors").is_file()
    torch.manual_seed(99)  # nothing may hang on what the process drew before
    assert_same(resumed(tmp_path / "run"), undisturbed)


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    ("room", "name", "after"),
    [
        (tail, "start_row", False),
        (tail, "judge", False),
        (tail, "judge", True),
        (run_module, "score", False),
        (run_module, "publish_results", True),
    ],
    ids=["between the starting weights", "after the trial", "after the verdict", "before scoring", "after publishing"],
)
def test_stopped_between_the_trainings_and_resumed_a_run_ends_the_same(
    photos: Path, tmp_path: Path, undisturbed: Run, room: Any, name: str, after: bool
) -> None:
    whole = getattr(room, name)

    def stops(*arguments: Any, **settings: Any) -> Any:
        if after:
            whole(*arguments, **settings)
        raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(room, name, stops)
        with pytest.raises(Killed):
            go(photos, tmp_path / "run")
    torch.manual_seed(99)
    assert_same(resumed(tmp_path / "run"), undisturbed)


@pytest.mark.usefixtures("half")
def test_stopped_many_times_a_run_ends_the_same(photos: Path, tmp_path: Path, undisturbed: Run) -> None:
    for number, step in enumerate((5, 5, 5, 5, 5)):
        with pytest.MonkeyPatch.context() as patched:
            stop_at(step, "signal", patched)
            with pytest.raises(Interrupted):
                resumed(tmp_path / "run") if number else go(photos, tmp_path / "run")
    assert_same(resumed(tmp_path / "run"), undisturbed)


@pytest.mark.usefixtures("half")
def test_without_a_cache_the_verdict_and_the_weights_are_the_same(
    photos: Path, tmp_path: Path, undisturbed: Run
) -> None:
    live = go(photos, tmp_path / "run", cache=False, cache_dir=None)
    assert_same(live, undisturbed)
    whole = {"strategy": "full", "cut": None}  # which stores sources, and not views
    assert_same(go(photos, tmp_path / "a", **whole, cache=False, cache_dir=None), go(photos, tmp_path / "b", **whole))


@pytest.mark.usefixtures("half")
def test_resumed_without_a_cache_a_run_ends_the_same(photos: Path, tmp_path: Path, undisturbed: Run) -> None:
    with pytest.MonkeyPatch.context() as patched:
        stop_at(TRIAL_STEPS + 3, "signal", patched)
        with pytest.raises(Interrupted):
            go(photos, tmp_path / "run", cache=False, cache_dir=None)
    assert_same(resumed(tmp_path / "run"), undisturbed)


@pytest.mark.usefixtures("half")
def test_of_many_images_what_was_held_out_is_left_out(
    photos: Path, tmp_path: Path, undisturbed: Run, fits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "REFIT_UP_TO", 63)
    found = go(photos, tmp_path / "run")
    assert [name for name, *_ in fits] == ["trial"]
    assert verdict_of(found) == verdict_of(undisturbed) and weights(found) != weights(undisturbed)
    monkeypatch.setattr(tail, "REFIT_UP_TO", 64)
    assert_same(go(photos, tmp_path / "other"), undisturbed)
    monkeypatch.setattr(tail, "REFIT_UP_TO", 63)
    with pytest.MonkeyPatch.context() as patched:
        stop_at(9, "signal", patched)
        with pytest.raises(Interrupted):
            go(photos, tmp_path / "stopped")
    assert_same(resumed(tmp_path / "stopped"), found)


def test_of_many_images_the_head_that_stays_is_that_of_all(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "REFIT_UP_TO", 1)
    found = go(photos, tmp_path / "run", brittle, lr=1.0)
    head = go(photos, tmp_path / "head", brittle, **{**HEAD, "head": found.plan.head})
    assert verdict_of(found).share == 0 and weights(found) == weights(head)


@pytest.mark.parametrize("option", [{"mixing": 1.0}, {"mixing": 0.3}, {"patience": 1}], ids=str)
def test_who_has_decided_needs_no_trial(photos: Path, tmp_path: Path, fits: list[Any], option: dict[str, Any]) -> None:
    found = go(photos, tmp_path / "run", **option)
    assert [(name, len(manifest.rows(TRAIN))) for name, _, manifest in fits] == [("checkpoints", 64)]
    assert found.plan.verdict is None and not (found.path / "trial.csv").exists()
    assert "kept: " not in str(found) and "steps aside" not in str(found)
    assert not (found.path / "checkpoints").exists()


def test_half_is_the_mean_of_start_and_end(photos: Path, tmp_path: Path) -> None:
    end, mean = (go(photos, tmp_path / str(share), mixing=share) for share in (1.0, 0.5))
    start = go(photos, tmp_path / "head", **{**HEAD, "head": end.plan.head})
    before, after, mixed = (load_file(run.model_path / "model.safetensors") for run in (start, end, mean))
    assert before.keys() == mixed.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {"head", "stages"} and not any(
        "stages.0" in name for name in moved
    )
    for name in mixed:
        expected = before[name] if name not in moved else (before[name] + after[name]) / 2
        torch.testing.assert_close(mixed[name], expected, rtol=1e-6, atol=1e-7)
    assert rows(mean) == rows(end)


def test_a_given_mixture_resumes_as_well(photos: Path, tmp_path: Path) -> None:
    whole = go(photos, tmp_path / "whole", mixing=0.5)
    for step in (0, 10, STEPS - 1):
        with pytest.MonkeyPatch.context() as patched:
            stop_at(step, "signal", patched)
            with pytest.raises(Interrupted):
                go(photos, tmp_path / str(step), mixing=0.5)
        again = resumed(tmp_path / str(step))
        assert weights(again) == weights(whole) and rows(again) == rows(whole)
        assert not (again.path / "checkpoints").exists()


def test_with_one_training_image_a_class_the_head_stays(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    make_photos(photos / "train", dict.fromkeys(NAMES, 1))
    make_photos(photos / "val", dict.fromkeys(NAMES, 2), seed=1)
    found = go(photos, tmp_path / "run")
    assert verdict_of(found) == NO_JUDGE and str(NO_JUDGE) in str(found)
    head = go(photos, tmp_path / "head", **{**HEAD, "head": found.plan.head})
    assert weights(found) == weights(head)


def test_a_class_of_a_single_image_is_no_hindrance(tmp_path: Path, fits: list[Any]) -> None:
    photos = make_photos(tmp_path / "photos", {"cat": 12, "dog": 12, "elk": 1, "owl": 2})
    go(photos, tmp_path / "run")
    _, _, tried = fits[0]
    assert tried.class_counts(TRAIN).tolist() == [8, 8, 1, 1] and tried.class_counts(VAL).tolist() == [2, 2, 0, 0]


def test_balanced_weights_and_resume_go_together(photos: Path, tmp_path: Path) -> None:
    uneven = make_photos(tmp_path / "photos", {"cat": 30, "dog": 10, "owl": 6})
    whole = go(uneven, tmp_path / "whole", class_weights="balanced")
    with pytest.MonkeyPatch.context() as patched:
        stop_at(4, "signal", patched)
        with pytest.raises(Interrupted):
            go(uneven, tmp_path / "run", class_weights="balanced")
    assert_same(resumed(tmp_path / "run"), whole)


def test_after_a_collapse_it_begins_again_with_a_tenth_of_the_rates(
    photos: Path, tmp_path: Path, fits: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = go(photos, tmp_path / "run", brittle, **BREAKING, mixing=1)
    assert [name for name, *_ in fits] == ["checkpoints", "again"]
    assert [rate for _, rate, _ in fits] == pytest.approx([0.02, 0.002])
    said = capsys.readouterr().err
    assert "note: the training accuracy fell from" in said and "it begins again with 0.1 of the rates" in said
    assert "the head stays" not in said
    assert max(float(row["lr_head"]) for row in rows(found)[1:]) < 0.002 and len(rows(found)) == 6
    slow = go(photos, tmp_path / "slow", brittle, **{**BREAKING, "lr": 0.02 * tail_fit.SMALLER_RATE}, mixing=1)
    assert weights(found) == weights(slow), "it begins again from the start, and not from what was left"
    assert rows(found) == rows(slow) and not (found.path / "checkpoints").exists()


@pytest.mark.parametrize("option", [{}, {"mixing": 1.0}], ids=["judged", "given"])
def test_after_a_second_collapse_the_head_stays(
    photos: Path,
    tmp_path: Path,
    fits: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: dict[str, Any],
) -> None:
    monkeypatch.setattr(tail_fit, "SMALLER_RATE", 1.0)
    found = go(photos, tmp_path / "run", brittle, **BREAKING, **option)
    assert [name for name, *_ in fits] == ["checkpoints" if option else "trial", "again"]
    assert "the head stays" in capsys.readouterr().err
    assert verdict_of(found) == WENT_ASTRAY and str(WENT_ASTRAY) in str(found)
    head = go(photos, tmp_path / "head", brittle, **{**HEAD, "head": found.plan.head})
    assert weights(found) == weights(head)
    assert found.metrics["val"]["accuracy"] == head.metrics["val"]["accuracy"]
    assert not (found.path / "checkpoints").exists()


@pytest.mark.usefixtures("half")
def test_stopped_around_collapses_and_resumed_a_run_ends_the_same(photos: Path, tmp_path: Path) -> None:
    lengths: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        fit, step = tail_fit.fit, TransferModule.training_step
        patched.setattr(
            tail_fit, "fit", lambda *arguments, **settings: lengths.append(0) or fit(*arguments, **settings)
        )

        def counted(self: TransferModule, batch: Any, number: int) -> Any:
            lengths[-1] += 1
            return step(self, batch, number)

        patched.setattr(TransferModule, "training_step", counted)
        whole = go(photos, tmp_path / "whole", brittle, **BREAKING)
    assert len(lengths) == 3 and lengths[0] < lengths[1] == 65 and lengths[2] == 80, "the second time at once so"
    for training, step, how in (
        (0, 33, "signal"),
        (1, 33, "signal"),
        (2, 5, "kill"),
        (2, 33, "signal"),
    ):
        out = tmp_path / f"{training} {step}"
        with pytest.MonkeyPatch.context() as patched:
            stop_at(sum(lengths[:training]) + step, how, patched)
            with pytest.raises((Interrupted, Killed)):
                go(photos, out, brittle, **BREAKING)
        assert_same(resumed(out, brittle), whole)


@pytest.mark.usefixtures("half")
def test_where_the_final_training_collapses_twice_nothing_else_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = tail_fit.fit

    def falls(*arguments: Any, folder: Path, **settings: Any) -> int:
        if folder.name != "trial":
            raise CollapsedError("the training accuracy fell")
        return fit(*arguments, folder=folder, **settings)

    monkeypatch.setattr(tail_fit, "fit", falls)
    found = go(photos, tmp_path / "run")
    head = go(photos, tmp_path / "head", **{**HEAD, "head": found.plan.head})
    assert weights(found) == weights(head)
    assert verdict_of(found).share == 0 and "kept: " not in str(found)
