"""Fine-tuning on trial: judged by training images alone, and done again with all of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.photos import make_photos
from tests.tasks.trials import (  # fixtures among them
    HEAD,
    NAMES,
    STEPS,
    assert_same,
    brittle,
    fits,
    go,
    half,
    photos,
    resumed,
    rows,
    stop_at,
    undisturbed,
    verdict_of,
    weights,
)
from toolkit.data.manifest import TEST, TRAIN, VAL
from toolkit.errors import Interrupted
from toolkit.tasks import trial
from toolkit.tasks.run import Run
from toolkit.training.mixing import NO_JUDGE, SHARES, Verdict

__all__ = ["fits", "half", "photos", "undisturbed"]


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
    judge, choose = trial.judge, trial.choose_head

    def seen(scores: Any, labels: Any, *more: Any) -> Verdict:
        judged.append(labels)
        return judge(scores, labels, *more)

    monkeypatch.setattr(trial, "judge", seen)

    def noted(features: Any, labels: Any, *more: Any, **settings: Any) -> Any:
        taught.append(labels)
        return choose(features, labels, *more, **settings)

    monkeypatch.setattr(trial, "choose_head", noted)
    go(photos, tmp_path / "run")
    (_, _, tried), (_, _, whole) = fits
    assert len(tried.rows(TRAIN)) == 52 and len(tried.rows(VAL)) == 12
    assert set(tried.rows(TRAIN)) | set(tried.rows(VAL)) == set(whole.rows(TRAIN))
    assert set(tried.rows(TEST)) == set(whole.rows(VAL))
    assert [labels.tolist() for labels in judged] == [tried.labels[tried.rows(VAL)].tolist()]
    assert taught[0].tolist() == tried.labels[tried.rows(TRAIN)].tolist()
    assert [len(labels) for labels in taught] == [52] * 3, "a head for each trial that may be asked"


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
    verdict = verdict_of(undisturbed)
    judged, plain = (load_file(run.model_path / "model.safetensors") for run in (undisturbed, given))
    assert verdict.share == 0.5 and verdict.temperature not in (0, 1)
    for name, value in plain.items():
        expected = value / verdict.temperature if name.startswith("head.") and value.is_floating_point() else value
        torch.testing.assert_close(judged[name], expected, rtol=1e-6, atol=0)
        assert name.startswith("head.") or torch.equal(judged[name], value)
    assert any(name.startswith("head.") for name in plain)
    assert rows(undisturbed) == rows(given)
    guesses = [[row["prediction"] for row in rows(run, "predictions.csv")] for run in (undisturbed, given)]
    assert guesses[0] == guesses[1] and len(guesses[0]) > 0


@pytest.mark.usefixtures("half")
def test_of_many_images_what_was_held_out_is_left_out(
    photos: Path, tmp_path: Path, undisturbed: Run, fits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "REFIT_UP_TO", 63)
    found = go(photos, tmp_path / "run")
    assert [name for name, *_ in fits] == ["trial"]
    assert verdict_of(found) == verdict_of(undisturbed) and weights(found) != weights(undisturbed)
    monkeypatch.setattr(trial, "REFIT_UP_TO", 64)
    assert_same(go(photos, tmp_path / "other"), undisturbed)
    monkeypatch.setattr(trial, "REFIT_UP_TO", 63)
    with pytest.MonkeyPatch.context() as patched:
        stop_at(9, "signal", patched)
        with pytest.raises(Interrupted):
            go(photos, tmp_path / "stopped")
    assert_same(resumed(tmp_path / "stopped"), found)


def test_of_many_images_the_head_that_stays_is_that_of_all(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "REFIT_UP_TO", 1)
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
