"""What can go wrong around a tail's trainings: collapses, lost files, other data, another process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.trials import (  # fixtures among them
    BREAKING,
    HEAD,
    TRIAL_STEPS,
    Killed,
    assert_same,
    brittle,
    fits,
    go,
    half,
    photos,
    resumed,
    stop_at,
    verdict_of,
    weights,
)
from toolkit.errors import ArtifactError, Interrupted
from toolkit.tasks import run as run_module
from toolkit.tasks import tail_fit, trial

__all__ = ["fits", "half", "photos"]


def stopped(photos: Path, out: Path, step: int) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        stop_at(step, "signal", patched)
        with pytest.raises(Interrupted):
            go(photos, out)
    return out


@pytest.mark.usefixtures("half")
def test_what_was_judged_at_a_tenth_of_the_rates_is_done_again_at_a_tenth(
    photos: Path, tmp_path: Path, fits: list[Any]
) -> None:
    found = go(photos, tmp_path / "run", brittle, **BREAKING)
    assert [name for name, *_ in fits] == ["trial", "again", "checkpoints"]
    assert [rate for _, rate, _ in fits] == pytest.approx([0.02, 0.002, 0.002])
    told = "training lost what the head could do, and began again with 0.1 of the rates"
    assert json.loads((found.path / "plan.json").read_text())["reasons"][-1] == told


@pytest.mark.usefixtures("half")
def test_a_training_that_the_verdict_does_not_describe_leaves_the_head(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = tail_fit.fit

    def goes_wild(module: Any, *more: Any, folder: Path, **settings: Any) -> int:
        steps = fit(module, *more, folder=folder, **settings)
        if folder.name == "checkpoints":
            module.network.head.linear.weight.data.mul_(-30)
        return steps

    monkeypatch.setattr(tail_fit, "fit", goes_wild)
    found = go(photos, tmp_path / "run")
    assert verdict_of(found).share == 0 and "it did worse on those that had judged it" in str(found)
    head = go(photos, tmp_path / "head", **{**HEAD, "head": found.plan.head})
    assert weights(found) == weights(head)


@pytest.mark.parametrize("where", ["start.safetensors", "trial/start.safetensors"])
@pytest.mark.parametrize("how", ["missing", "damaged", "empty"])
def test_starting_weights_that_are_lost_end_a_run_in_a_line(photos: Path, tmp_path: Path, where: str, how: str) -> None:
    out = stopped(photos, tmp_path / "run", 4)
    path = out / "checkpoints" / where
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if how == "empty" else 300])
    wanted = "is missing" if how == "missing" else "is damaged"
    if (where, how) == ("start.safetensors", "missing") and not (out / "checkpoints/last.ckpt").exists():
        resumed(out)  # nothing of a training is there: it begins anew
        return
    with pytest.raises(ArtifactError, match=f"{where} {wanted}: .*start it again"):
        resumed(out)


def test_other_images_are_noticed_before_the_first_checkpoint(photos: Path, tmp_path: Path) -> None:
    from tests.photos import make_photos

    mine = make_photos(tmp_path / "photos", {"cat": 12, "dog": 12})
    with pytest.MonkeyPatch.context() as patched:
        stop_at(0, "kill", patched)
        with pytest.raises(Killed):
            go(mine, tmp_path / "run")
    next(mine.rglob("*.jpg")).unlink()
    with pytest.raises(ArtifactError, match="files were added, removed or moved"):
        resumed(tmp_path / "run")


@pytest.mark.usefixtures("half")
def test_a_run_that_another_process_finishes_meanwhile_stays_as_it_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped(photos, tmp_path / "run", TRIAL_STEPS + 3)
    scan, others = run_module.scan, []

    def slow(*arguments: Any, **settings: Any) -> Any:
        manifest = scan(*arguments, **settings)
        if not others:
            others.append(1)
            others.append(resumed(out))
        return manifest

    monkeypatch.setattr(run_module, "scan", slow)
    before = others
    found = resumed(out)
    assert str(found) == str(before[1])
    assert not (out / "checkpoints").exists()


def test_a_signal_in_the_step_that_collapses_stops_the_run(photos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        from toolkit.training.collapse import CollapsedError, CollapseGuard

        def collapses(self: Any, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                raise CollapsedError("lost")

        patched.setattr(CollapseGuard, "on_train_batch_end", collapses)
        stop_at(2, "signal", patched)
        with pytest.raises(Interrupted):
            go(photos, tmp_path / "run")


def test_the_trial_is_judged_batch_by_batch(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images are held out, the activations of one batch at a time are in memory."""
    import gc
    import weakref

    alive: list[Any] = []
    most = 0
    make = trial.make_data

    def watched(*arguments: Any) -> Any:
        data = make(*arguments)
        loader = data.val_dataloader

        def batches() -> Any:
            nonlocal most
            for batch in loader():
                alive.append(weakref.ref(batch.labels))
                gc.collect()
                most = max(most, sum(one() is not None for one in alive[:-1]))
                yield batch._replace(labels=batch.labels.clone())

        monkeypatch.setattr(data, "val_dataloader", batches)
        return data

    monkeypatch.setattr(trial, "make_data", watched)
    go(photos, tmp_path / "run", batch_size=2)
    assert len(alive) > 5 and most <= 1


RECIPES: list[dict[str, Any]] = [
    {"ema": 0.8, "mixup": 0.4, "label_smoothing": 0.1, "unfreeze": 1},
    {
        "strategy": "full",
        "cut": None,
        "decay_towards": "start",
        "weight_decay": 1.0,
        "cutmix": 1.0,
        "augment": "trivial",
    },
]


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize("recipe", RECIPES, ids=["average", "towards the start"])
def test_with_every_part_of_a_recipe_a_run_ends_the_same_stopped_or_live(
    photos: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    whole = go(photos, tmp_path / "whole", **recipe)
    assert weights(whole) != weights(go(photos, tmp_path / "plain", **{k: recipe[k] for k in recipe if k in HEAD}))
    assert_same(go(photos, tmp_path / "live", **recipe, cache=False, cache_dir=None), whole)
    for step in (9, TRIAL_STEPS + 11):
        out = tmp_path / f"stopped {step}"
        with pytest.MonkeyPatch.context() as patched:
            stop_at(step, "signal", patched)
            with pytest.raises(Interrupted):
                go(photos, out, **recipe)
        torch.manual_seed(99)
        assert_same(resumed(out), whole)
