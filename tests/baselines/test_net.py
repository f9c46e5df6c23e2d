"""A net of our layers and one of torch's: equal names, equal first weights, equal training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.baselines.small import baseline, examples
from toolkit.baselines.net import CentredNet, NetSpec, build_net
from toolkit.errors import SettingError

NETS: list[dict[str, Any]] = [
    {},
    {"hidden": ()},
    {"hidden": (), "loss": "hinge"},
    {"batchnorm": True, "dropout": 0.3, "schedule": "cosine"},
    {"activation": "maxout", "dropout": 0.5},
    {"activation": "tanh", "init": "xavier", "optimizer": "nesterov", "lr": 0.05, "l2": 1e-3},
    {"activation": "leaky_relu", "init": "large", "optimizer": "sgd", "lr": 0.1, "l1": 1e-3},
    {"activation": "elu", "loss": "hinge", "optimizer": "rmsprop", "batchnorm": True},
    {"activation": "sigmoid", "init": "small", "optimizer": "adagrad", "lr": 0.02},
]


def curve(layers: str, steps: int = 50, **settings: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the losses of `steps` steps in float64, and the state that they ended in."""
    manifest, inputs = examples()
    module, data = baseline(manifest, inputs, epochs=100, dtype=torch.float64, layers=layers, **settings)
    optimizer = module.configure_optimizers()
    loader = data.train_dataloader()
    module.train()
    torch.manual_seed(5)
    losses: list[float] = []
    while len(losses) < steps:
        loader.sampler.set_epoch(len(losses))
        for rows, labels in loader:
            for part, wanted in zip(rows.split(8), labels.split(8), strict=True):
                losses.append(float(module.step(optimizer, len(losses), part, wanted)[0]))
    return losses[:steps], module.network.state_dict()


@pytest.mark.parametrize("settings", NETS, ids=lambda settings: ",".join(map(str, settings.values())) or "default")
def test_both_give_the_same_training_curve(settings: dict[str, Any]) -> None:
    """Dropout drawn alike, running statistics too, to 1e-8 in float64 over 50 steps."""
    ours, torchs = curve("reference", **settings), curve("torch", **settings)
    assert ours[0] == pytest.approx(torchs[0], abs=1e-8)
    assert min(ours[0][-7:]) < ours[0][0], "it learns"
    assert ours[1].keys() == torchs[1].keys()
    for key, value in ours[1].items():
        assert torch.allclose(value.double(), torchs[1][key].double(), rtol=0, atol=1e-8), key


def test_they_are_of_other_classes_and_of_the_same_first_weights() -> None:
    spec = NetSpec(10, 3, (6, 5), batchnorm=True, dropout=0.5)
    theirs, ours = build_net(spec, seed=3), build_net(NetSpec(**{**spec.to_dict(), "layers": "reference"}), seed=3)
    assert not any(type(module).__module__.startswith("torch.nn") for module in list(ours.modules())[2:])
    assert {type(module) for module in theirs.layers} == {nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout}
    for key, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key
    other = build_net(spec, seed=4).state_dict()
    assert not torch.equal(other["layers.0.weight"], theirs.state_dict()["layers.0.weight"])


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    build_net(NetSpec(4, 2, (3,)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_net_centres_by_its_statistics_and_blows_nothing_up() -> None:
    spec = NetSpec(3, 2, layers="reference", init="he")
    mean, scale = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.0, 1e-9])
    net = CentredNet(spec, mean, scale)
    assert net.factor.tolist() == [0.5, 1.0, 1.0]
    rows = torch.tensor([[3, 2, 3]], dtype=torch.uint8)
    assert torch.allclose(net(rows), net.net(torch.tensor([[1.0, 0.0, 0.0]])))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"layers": "keras"}, "unknown layers 'keras'"),
        ({"activation": "swish"}, "net: "),
        ({"init": "random"}, "net: "),
        ({"dropout": 1.0}, "net: "),
        ({"hidden": (4, 0)}, "net: "),
    ],
)
def test_what_makes_no_net_is_refused_in_one_line(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=text):
        build_net(NetSpec(**{"n_inputs": 4, "n_classes": 2, "hidden": (3,), **settings}))
