"""A network as it predicts gives the scores of the network as it trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.features.small import family
from tests.training.tiny import copied
from toolkit.features.fuse import FusedConvolution, can_fuse
from toolkit.features.prefix import Activations
from toolkit.heads.linear import LinearHead
from toolkit.plan import FreezeSpec
from toolkit.training.network import TransferNetwork
from toolkit.training.settled import SettledNetwork
from toolkit.training.trained import TrainedModel

CPU = torch.device("cpu")
CASES = [
    ("tiny", 0, (3,)),
    ("tiny", 2, (1, 3)),
    ("mobilenet_v2", 0, (7,)),
    ("efficientnet_lite0", 5, (4, 7)),
    ("resnet18", 3, (4,)),
    ("timm/test_efficientnet", 0, (5,)),
    ("vit_b_32", 4, (5,)),
]


def network_of(name: str, cut: int, taps: tuple[int, ...]) -> TransferNetwork:
    backbone = family(name)
    torch.manual_seed(0)
    shapes = backbone.stage_shapes()
    widths = [shapes[tap][0 if backbone.layout == "NCHW" or len(shapes[tap]) == 1 else -1] for tap in taps]
    head = LinearHead(widths, 3)
    nn.init.normal_(head.linear.weight)
    return TransferNetwork(backbone, head, FreezeSpec.at_cut(len(backbone), cut), taps=taps).eval()


def pixels_for(network: TransferNetwork, n: int = 5, more: int = 0) -> Tensor:
    side = network.backbone.preprocessing.crop_px + more
    return (torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 255).byte()


def model_of(network: TransferNetwork) -> TrainedModel:
    return TrainedModel.of(network, network.backbone, ("a", "b", "c"), 10**6)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "cut", "taps"), CASES)
def test_the_scores_stay_and_so_does_the_network(name: str, cut: int, taps: tuple[int, ...]) -> None:
    network = network_of(name, cut, taps)
    pixels, before = pixels_for(network), copied(network.state_dict())
    with torch.no_grad():
        expected = network(pixels)
        settled = SettledNetwork(network, CPU)
        assert_close(settled(pixels), expected)
        if cut:
            assert torch.equal(settled(network.prefix()(pixels)), settled(pixels))
    after = network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(isinstance(module, FusedConvolution) for module in network.modules())
    if can_fuse(torch.float32) and name != "vit_b_32":
        assert any(isinstance(module, FusedConvolution) for module in settled.stages.modules()) or name == "resnet18"
        assert not any(isinstance(module, nn.BatchNorm2d) for module in settled.stages.modules())


def test_images_of_another_size_go_through_the_network() -> None:
    network = network_of("efficientnet_lite0", 0, (7,))
    pixels = pixels_for(network, more=33)
    with torch.no_grad():
        assert torch.equal(SettledNetwork(network, CPU)(pixels), network(pixels))


@pytest.mark.parametrize("cut", [0, 2])
def test_a_model_that_is_trained_on_gives_its_new_scores(cut: int) -> None:
    network = network_of("tiny", cut, (3,))
    model, pixels = model_of(network), pixels_for(network, 20)
    first = model.logits(pixels)
    with torch.no_grad():
        for module in network.stages[3].modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(3)
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.add_(1)
        expected = network(pixels)
    assert not torch.allclose(first, expected, atol=1e-2)
    assert_close(model.logits(pixels), expected)
    with torch.no_grad():
        network.head.linear.weight.mul_(2)
        expected = network(pixels)
    assert_close(model.logits(pixels), expected)


@pytest.mark.parametrize("cut", [0, 2])
def test_whatever_is_changed_by_hand_is_seen(cut: int) -> None:
    network = network_of("tiny", cut, (3,))
    model, pixels = model_of(network), pixels_for(network, 20)
    model.logits(pixels)

    def check() -> None:
        with torch.no_grad():
            expected = network(pixels)
        assert not torch.allclose(last[0], expected, atol=1e-3)
        last[0] = model.logits(pixels)
        assert_close(last[0], expected)

    last = [model.logits(pixels)]
    network.head = nn.Linear(16, 3)
    check()
    with torch.no_grad():
        network.head.weight.mul_(2)
    check()
    for stage in (3, 0):
        for module in network.stages[stage].modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data.mul_(2)
        network.renew_prefix()
        check()
    handle = network.stages[3].register_forward_hook(lambda module, inputs, output: output * 0)
    check()
    handle.remove()
    check()


def test_what_was_made_in_inference_mode_goes_through_the_network() -> None:
    with torch.inference_mode():
        network = network_of("tiny", 0, (3,))
        model, pixels = model_of(network), pixels_for(network, 20)
        first = model.logits(pixels)
        for parameter in network.stages[3].parameters():
            parameter.mul_(2)
        expected = network(pixels)
    assert not torch.allclose(first, expected, atol=1e-3)
    assert_close(model.logits(pixels), expected)


def test_the_copies_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import toolkit.training.settled as settled

    network = network_of("tiny", 2, (3,))
    model, made = model_of(network), []
    copies = settled.frozen_copies
    monkeypatch.setattr(settled, "frozen_copies", lambda *a: made.append(1) or copies(*a))
    for n in (1, 16, 40):
        model.logits(pixels_for(network, n))
    assert len(made) == 1


def test_stored_activations_give_the_scores_of_their_pixels_to_the_bit() -> None:
    network = network_of("efficientnet_lite0", 5, (4, 7))
    model, pixels = model_of(network), pixels_for(network, 21)
    with torch.no_grad():
        stored = network.prefix()(pixels)
    assert isinstance(stored, Activations)
    assert torch.equal(model.logits(stored), model.logits(pixels))


def test_the_random_state_is_not_touched() -> None:
    network = network_of("tiny", 0, (3,))
    state = torch.get_rng_state()
    model_of(network).logits(pixels_for(network))
    assert torch.equal(torch.get_rng_state(), state)
