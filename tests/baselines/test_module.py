"""BaselineModule: what its settings do, that units change nothing, and that a kill between units costs nothing."""

from __future__ import annotations

import csv
import math
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.baselines.small import baseline, examples, train
from tests.training.tiny import assert_equal
from toolkit.baselines import loading
from toolkit.baselines.module import SCHEDULES, BaselineModule, factor, make_optimizer, weights_of
from toolkit.baselines.net import CentredNet, NetSpec
from toolkit.errors import ArtifactError, Interrupted, SettingError, ToolkitError
from toolkit.training import checkpoints


def history(folder: Path) -> list[dict[str, str]]:
    with open(folder / "history.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_a_run_learns_and_counts_optimizer_steps(tmp_path: Path) -> None:
    train(tmp_path, epochs=8, lr=0.01)
    rows = history(tmp_path)
    assert [row["step"] for row in rows] == [str(6 * epoch) for epoch in range(1, 9)]
    assert float(rows[0]["train_loss"]) == pytest.approx(math.log(3), abs=0.6)
    assert float(rows[-1]["train_loss"]) < 0.5 and float(rows[-1]["val_accuracy"]) > 0.8
    assert float(rows[-1]["train_accuracy"]) > 0.8


def test_the_size_of_a_unit_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"dropout": 0.3, "batchnorm": True, "schedule": "cosine"}
    large = train(tmp_path / "large", **settings)
    monkeypatch.setattr(loading, "UNIT_STEPS", 1)
    small = train(tmp_path / "small", **settings)
    assert_equal(large.network.state_dict(), small.network.state_dict())
    assert [row["step"] for row in history(tmp_path / "large")] == ["6", "12"]


SETTINGS: dict[str, Any] = {
    "hidden": (12, 6),
    "activation": "tanh",
    "init": "xavier",
    "batchnorm": True,
    "dropout": 0.4,
    "optimizer": "sgd",
    "schedule": "inverse",
    "loss": "hinge",
    "lr": 0.005,
    "l1": 0.01,
    "l2": 0.01,
    "batch_size": 16,
    "epochs": 3,
    "seed": 1,
}


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_changes_the_weights(key: str, tmp_path: Path, plain: dict[str, torch.Tensor]) -> None:
    state = train(tmp_path, **{key: SETTINGS[key]}).network.state_dict()
    assert any(key not in plain or not torch.equal(value, plain[key]) for key, value in state.items())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return train(tmp_path_factory.mktemp("plain")).network.state_dict()


def test_one_seed_one_result(tmp_path: Path, plain: dict[str, torch.Tensor]) -> None:
    assert_equal(train(tmp_path).network.state_dict(), plain)


def test_resumed_after_a_signal_in_mid_epoch_equals_the_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "UNIT_STEPS", 2)
    settings: dict[str, Any] = {"dropout": 0.3, "batchnorm": True, "schedule": "step", "epochs": 3}
    whole = train(tmp_path / "whole", **settings)
    step = BaselineModule.step

    def interrupted(self: BaselineModule, optimizer: Any, number: int, *batch: Any) -> Any:
        if number == 8:  # the second unit of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, optimizer, number, *batch)

    monkeypatch.setattr(BaselineModule, "step", interrupted)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", **settings)
    monkeypatch.setattr(BaselineModule, "step", step)
    assert torch.load(tmp_path / "cut" / "checkpoints" / checkpoints.LAST, weights_only=True)["global_step"] == 10
    resumed = train(tmp_path / "cut", **settings)
    assert_equal(resumed.network.state_dict(), whole.network.state_dict())
    assert history(tmp_path / "cut") == history(tmp_path / "whole")


def test_a_checkpoint_of_another_net_or_of_other_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path)
    with pytest.raises(ArtifactError, match="of another net"):
        train(tmp_path, hidden=(5,))
    with pytest.raises(ArtifactError, match="not those of the checkpoint"):
        train(tmp_path, n=61)


def test_a_net_that_diverges_stops_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ToolkitError, match=r"the gradient was inf in step 3, which was not taken; .*take --lr 10, a tenth"
    ):
        train(tmp_path, lr=100.0, optimizer="momentum", init="large", activation="identity", hidden=(50,) * 12)


def test_a_last_batch_of_one_image_is_normalised_by_running_statistics(tmp_path: Path) -> None:
    manifest, inputs = examples()
    module, _ = baseline(manifest, inputs, batchnorm=True)
    module.train()
    before = module.network.net.layers[1].running_mean.clone()
    module.step(module.configure_optimizers(), 0, inputs.values[:1], torch.tensor([0]))
    assert torch.equal(module.network.net.layers[1].running_mean, before)
    assert module.network.net.layers[1].training


def test_l1_makes_weights_exactly_0_and_l2_makes_them_small() -> None:
    manifest, inputs = examples()

    def weights(**settings: Any) -> torch.Tensor:
        module, _ = baseline(manifest, inputs, hidden=(), init="he", optimizer="sgd", lr=0.1, **settings)
        optimizer = module.configure_optimizers()
        for number in range(300):
            module.step(optimizer, number, inputs.values, torch.from_numpy(manifest.labels))
        return module.network.net.layers[0].weight.detach()

    plain, sparse, small = weights(), weights(l1=0.05), weights(l2=0.05)
    assert (plain == 0).sum() == 0 and (small == 0).sum() == 0
    assert (sparse == 0).float().mean() > 0.5
    assert small.norm() < plain.norm() / 2


def test_l2_is_the_gradient_of_the_penalty_on_weights_alone() -> None:
    manifest, inputs = examples()
    module, _ = baseline(manifest, inputs, optimizer="sgd", lr=0.5, l2=0.1, layers="reference", dtype=torch.float64)
    expected = {name: p.detach().clone().requires_grad_() for name, p in module.network.named_parameters()}
    labels = torch.from_numpy(manifest.labels)
    scores = torch.func.functional_call(module.network, expected, (inputs.values.flatten(1),))
    penalty = sum(p.square().sum() for p in expected.values() if p.ndim == 2)
    (torch.nn.functional.cross_entropy(scores, labels) + 0.1 * penalty).backward()
    module.step(module.configure_optimizers(), 0, inputs.values, labels)
    for name, parameter in module.network.named_parameters():
        assert torch.allclose(parameter, expected[name] - 0.5 * expected[name].grad, atol=1e-12), name


def test_schedules_are_closed_forms() -> None:
    shares = {name: [factor(name, step, 9) for step in range(9)] for name in SCHEDULES}
    assert shares["constant"] == [1.0] * 9
    assert shares["step"] == pytest.approx([1.0] * 3 + [0.1] * 3 + [0.01] * 3)
    assert shares["exponential"][0] == 1 and shares["exponential"][-1] == pytest.approx(0.01)
    assert shares["inverse"][0] == 1 and shares["inverse"][-1] == pytest.approx(0.1)
    assert shares["cosine"][0] == 1 and 0 < shares["cosine"][-1] < 0.05
    assert all(later <= sooner for name in SCHEDULES for sooner, later in pairwise(shares[name]))
    assert all(factor(name, 0, 1) == 1 for name in SCHEDULES)


def test_optimizers_by_name() -> None:
    def made(name: str) -> torch.optim.Optimizer:
        return make_optimizer(name, [{"params": [torch.nn.Parameter(torch.zeros(2, 2))]}], 0.1)

    optim = torch.optim
    kinds = {"adam": optim.Adam, "adagrad": optim.Adagrad, "rmsprop": optim.RMSprop}
    for name in ("adam", "sgd", "momentum", "nesterov", "adagrad", "rmsprop"):
        assert isinstance(made(name), kinds.get(name, optim.SGD))
    assert [made(name).defaults["momentum"] for name in ("sgd", "momentum", "nesterov")] == [0.0, 0.9, 0.9]
    assert [made(name).defaults["nesterov"] for name in ("momentum", "nesterov")] == [False, True]


def test_regularised_are_the_weight_matrices() -> None:
    net = CentredNet(NetSpec(5, 3, (4,), batchnorm=True))
    assert [tuple(p.shape) for p in weights_of(net)] == [(4, 5), (3, 4)]


@pytest.mark.parametrize(
    "settings",
    [{"lr": math.nan}, {"lr": 0.0}, {"l1": -1.0}, {"l2": math.inf}, {"loss": "mse"}, {"optimizer": "adamm"}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        BaselineModule(CentredNet(NetSpec(4, 2)), total_steps=1, **settings)
