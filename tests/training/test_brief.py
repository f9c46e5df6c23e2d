"""A brief training ends in the weights of any other, writes nothing, says nothing, and stops at a signal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.baselines.small import baseline, examples
from toolkit.errors import Interrupted
from toolkit.training.fit import FitSettings, fit

CPU = torch.device("cpu")


def weights(folder: Path, *, brief: bool) -> dict[str, torch.Tensor]:
    module, data = baseline(*examples(), dropout=0.3)
    folder.mkdir()
    torch.manual_seed(0)
    settings = FitSettings(2, "32-true", clip=None, brief=brief)
    fit(module, data, settings, folder=folder, history=folder / "history.csv", device=CPU)
    return dict(module.state_dict())


def test_it_trains_as_any_other_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = weights(tmp_path / "brief", brief=True)
    assert not list((tmp_path / "brief").iterdir())
    assert capsys.readouterr() == ("", "")
    theirs = weights(tmp_path / "whole", brief=False)
    assert list((tmp_path / "whole").iterdir())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_signal_ends_it_after_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = baseline(*examples(), epochs=50)
    before = signal.getsignal(signal.SIGTERM)
    steps = []
    step = module.training_step

    def counted(*arguments: object) -> object:
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "training_step", counted)
    with pytest.raises(Interrupted) as stop:
        settings = FitSettings(50, "32-true", clip=None, brief=True)
        fit(module, data, settings, folder=tmp_path, history=tmp_path / "history.csv", device=CPU)
    assert stop.value.signal_number == signal.SIGTERM and len(steps) == 2
    assert signal.getsignal(signal.SIGTERM) is before
