"""What judges a trial: scores of every mixture on the images held out, each mixture put once for all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.photos import make_photos
from tests.tasks.trials import NAMES, fits, go, half, photos, verdict_of  # fixtures among them
from toolkit.data.manifest import VAL
from toolkit.tasks import find_rate, trial
from toolkit.training import trained
from toolkit.training.mixing import SHARES, Verdict

__all__ = ["fits", "half", "photos"]

LIVE: dict[str, Any] = {"cache": False, "cache_dir": None}


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize("option", [{}, LIVE], ids=["stored", "live"])
def test_every_mixture_is_settled_once_however_many_batches_judge_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any]
) -> None:
    settled: list[Any] = []
    scored: list[tuple[int, int, int]] = []
    make, score = trained.SettledNetwork, trial.scores_of_mixtures

    def made(*arguments: Any) -> Any:
        settled.append(arguments)
        return make(*arguments)

    def noted(*arguments: Any) -> Any:
        *rest, shares = arguments
        settled.clear()
        found, labels = score(*arguments)
        scored.append((len(shares), len(settled), len(labels)))
        for share, scores in zip(shares, found, strict=True):
            (alone,), same = score(*rest, (share,))
            assert torch.equal(alone, scores) and torch.equal(same, labels)
        return found, labels

    monkeypatch.setattr(trained, "SettledNetwork", made)
    monkeypatch.setattr(trial, "scores_of_mixtures", noted)
    go(photos, tmp_path / "run", **option)
    assert scored == [(5, 5, 12), (1, 1, 12)], "two batches of eight, and the confirmation"


def test_an_image_that_fails_under_one_mixture_judges_none(
    photos: Path, tmp_path: Path, fits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[tuple[list[int], list[int]]] = []
    judge, put = trial.judge, trial.put_mixture
    gone = make_photos(tmp_path / "photos", dict.fromkeys(NAMES, 20))

    def putting(network: Any, start: Any, end: Any, share: float) -> None:
        put(network, start, end, share)
        if share == SHARES[2]:
            _, _, tried = fits[0]
            tried.file(tried.rows(VAL)[3]).unlink(missing_ok=True)

    def seen(scores: Any, labels: Any, *more: Any) -> Verdict:
        judged.append(([len(some) for some in scores], labels.tolist()))
        return replace(judge(scores, labels, *more), share=0.0, gain=0.0)

    monkeypatch.setattr(trial, "put_mixture", putting)
    monkeypatch.setattr(trial, "judge", seen)
    go(gone, tmp_path / "run", **LIVE)
    _, _, tried = fits[0]
    labels = tried.labels[tried.rows(VAL)].tolist()
    assert judged[0] == ([11] * 5, labels[:3] + labels[4:])


def with_a_broken_class(root: Path, n: int) -> Path:
    """Make photographs of NAMES and, the first by its label, of a class all of whose files end in the middle."""
    make_photos(root, {**dict.fromkeys(NAMES, n), "bat": 3})
    for path in (root / "bat").iterdir():
        path.write_bytes(path.read_bytes()[:-300])
    return root


@pytest.mark.usefixtures("half")
def test_a_class_without_a_readable_file_does_not_change_the_verdict(photos: Path, tmp_path: Path) -> None:
    """Its score of -100 must not be averaged with those of the others, whose temperature it would more than double."""
    broken = with_a_broken_class(tmp_path / "photos", 20)
    plain, found = (verdict_of(go(of, tmp_path / of.parent.name / "run")) for of in (photos, broken))
    assert found.share == plain.share == 0.5 and found.n == plain.n
    assert found.temperature == pytest.approx(plain.temperature, rel=1e-3)
    for one, other in zip(found.mixtures, plain.mixtures, strict=True):
        assert one.temperature == pytest.approx(other.temperature, rel=1e-3)
        assert (one.accuracy, one.nll) == (other.accuracy, pytest.approx(other.nll, rel=1e-3))


def test_rates_are_rehearsed_by_the_classes_that_have_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[bool]] = []
    rehearse = find_rate.rehearse

    def noted(*arguments: Any, seen: Any, **settings: Any) -> Any:
        asked.append(seen.tolist())
        return rehearse(*arguments, seen=seen, **settings)

    monkeypatch.setattr(find_rate, "rehearse", noted)
    go(with_a_broken_class(tmp_path / "photos", 5), tmp_path / "run", lr="auto", mixing=1.0)
    assert asked and all(seen == [False, True, True, True, True] for seen in asked)
