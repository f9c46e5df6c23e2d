"""Convolutions that do what follows them: the same numbers but for rounding, whatever a forward does."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.features.small import SIZES, family
from tests.features.test_fold import Used, conv, norm, sample
from toolkit.features import fuse as fusing
from toolkit.features.agree import agrees
from toolkit.features.fold import frozen_copies
from toolkit.features.fuse import FusedConvolution, can_fuse, fuse
from toolkit.features.prefix import CHUNK, FrozenPrefix

pytestmark = pytest.mark.skipif(not can_fuse(torch.float32), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def count(stages: nn.Module) -> int:
    return sum(isinstance(module, FusedConvolution) for module in stages.modules())


def check(stages: list[nn.Module], fused: int | None, images: Tensor | None = None) -> nn.ModuleList:
    """Fold and fuse; compare every stage's output on other images, twice; count what was fused."""
    images = sample() if images is None else images
    folded = frozen_copies([stage.eval() for stage in stages], images)
    before = copy.deepcopy(folded.stages)
    made = folded.stages
    fuse(made, folded.activations, folded.followers)
    assert fused is None or count(made) == fused
    other = images.flip(2) * 1.5 + 0.1
    with torch.no_grad():
        for _ in range(2):
            expected = found = other
            for plain, stage in zip(before, made, strict=True):
                expected, found = plain(expected.clone()), stage(found.clone())
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    return made


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.Hardtanh(-0.5, 2.0),
        nn.LeakyReLU(0.2),
        nn.SiLU(),
        nn.Hardswish(inplace=True),
        nn.GELU(),
        nn.GELU("tanh"),
    ],
    ids=str,
)
def test_an_activation_is_done_by_its_convolution(activation: nn.Module) -> None:
    made = check([nn.Sequential(conv(), norm(6), activation)], fused=1)
    assert not any(type(module) is type(activation) for module in made.modules())


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ELU(), nn.Softplus(), nn.PReLU()], ids=str)
def test_any_other_activation_stays(activation: nn.Module) -> None:
    check([nn.Sequential(conv(), activation)], fused=0)


class Doubled(nn.ReLU):
    """A kind of ReLU that is none."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_class_of_its_own_is_not_what_it_derives_from() -> None:
    class Shifted(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    check([nn.Sequential(conv(), Doubled())], fused=0)
    check([nn.Sequential(Shifted(3, 6, 3), nn.ReLU())], fused=0)


@pytest.mark.parametrize(
    "settings", [{"groups": 3}, {"stride": 2}, {"dilation": 2}, {"bias": False}, {"padding_mode": "zeros"}], ids=str
)
def test_convolutions_of_every_kind(settings: dict) -> None:
    check([nn.Sequential(conv(**settings), nn.ReLU())], fused=1)


@pytest.mark.parametrize("settings", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}], ids=str)
def test_padding_that_onednn_does_not_do_stays(settings: dict) -> None:
    check([nn.Sequential(nn.Conv2d(3, 6, 3, **settings), nn.ReLU())], fused=0)


def modules() -> dict[str, nn.Module]:
    return {
        "first": conv(3, 3),
        "second": conv(3, 3),
        "third": nn.Conv2d(3, 3, 1),
        "act": nn.LeakyReLU(0.1),
        "other": nn.ReLU6(),
        "same": nn.Identity(),
    }


class Grid(nn.Module):
    """A convolution of something that is the same for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.act = conv(3, 3), nn.ReLU()
        self.grid = nn.Parameter(torch.randn(1, 3, 24, 24))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.convolution(self.grid)) + x


def _sometimes(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    return m.act(y) if isinstance(x, Tensor) and y.sum() > -1e9 else y


# forward → how many convolutions it lets be fused
FORWARDS = {
    "a shortcut": (lambda m, x: m.act(m.first(x)) + x, 1),
    "nothing between": (lambda m, x: m.act(m.same(m.first(x))), 1),
    "two branches": (lambda m, x: m.act(m.first(x)) + m.second(x), 1),
    "the sum is activated": (lambda m, x: m.act(m.first(x) + x), 0),
    "an activation used twice": (lambda m, x: m.act(m.second(m.act(m.first(x)))), 0),
    "a convolution used twice": (lambda m, x: m.other(m.first(m.act(m.first(x)))), 0),
    "a function": (lambda m, x: F.relu(m.first(x)), 0),
    "in place before it": (lambda m, x: m.act(m.first(x).mul_(2)), 0),
    "something between": (lambda m, x: m.act(m.first(x) * 2), 0),
    "an output that goes elsewhere too": (lambda m, x: m.act(y := m.first(x)) + y, 0),
    "two activations of one output": (lambda m, x: m.act(y := m.first(x)) + m.other(y), 0),
    "numbers decide": (_sometimes, 1),
    "a call by keyword": (lambda m, x: m.act(m.first(input=x)), 0),
    "an activation by keyword": (lambda m, x: m.act(input=m.first(x)), 0),
    "a look into the convolution": (lambda m, x: m.act(m.first(x)) * m.first.weight.sum(), 0),
    "chance": (lambda m, x: m.act(m.first(x)) + 0 * torch.rand(1), 1),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_whatever_a_forward_does_the_numbers_stay(name: str) -> None:
    forward, fused = FORWARDS[name]
    check([Used(forward, **modules())], fused)


def test_one_odd_stage_does_not_cost_the_others() -> None:
    odd = Used(FORWARDS["an output that goes elsewhere too"][0], **modules())
    check([nn.Sequential(conv(3, 3), nn.ReLU()), odd, nn.Sequential(conv(), nn.ReLU())], fused=2)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("what", ["hook", "pre-hook", "forward"])
def test_what_a_user_has_put_on_a_module_is_kept(place: int, what: str) -> None:
    stage = nn.Sequential(conv(), nn.ReLU())
    if what == "hook":
        stage[place].register_forward_hook(lambda module, inputs, output: output * 2)
    elif what == "pre-hook":
        stage[place].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    else:
        own = stage[place].forward
        stage[place].forward = lambda x: own(x) * 2
    check([stage], fused=0)


def test_hooks_on_what_is_not_fused_are_called() -> None:
    seen: list[Tensor] = []
    stage = nn.Sequential(nn.Sequential(conv(), nn.ReLU()), nn.Identity())
    for module in (stage, stage[0], stage[1]):
        module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    made = check([stage], fused=1)
    seen.clear()
    made[0](sample())
    assert len(seen) == 3 and all(type(tensor) is Tensor for tensor in seen)


def test_something_that_is_the_same_for_every_image_is_not_taken_for_one() -> None:
    made = check([nn.Sequential(conv(3, 3), nn.ReLU()), Grid()], fused=2)
    with torch.no_grad():
        assert made[1](made[0](sample(n=5))).shape == (5, 3, 24, 24)


def test_another_shape_is_not_taken_for_the_right_one() -> None:
    given = torch.ones(1, 3, 4, 4)
    assert not agrees(nn.AdaptiveAvgPool2d(1), given, given) and agrees(nn.Identity(), given, given)


def test_several_threads_make_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    backbones = [family("mobilenet_v2") for _ in range(3)]
    images = (torch.rand(3, 3, 64, 64) * 255).byte()

    def answer(backbone) -> tuple[int, Tensor]:
        prefix = FrozenPrefix(backbone, cut=None, taps=[7])
        return count(prefix.stages), prefix(images).pooled[0]

    alone = [answer(backbone) for backbone in backbones]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(answer, backbones * 6))
    for number, (fused, pooled) in enumerate(together):
        assert fused == alone[number % 3][0] and torch.equal(pooled, alone[number % 3][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    if not can_fuse(dtype):
        pytest.skip("this CPU has none")
    made = check([nn.Sequential(conv(), nn.ReLU6())], fused=1)
    images = sample()
    with torch.no_grad():
        expected = made[0](images)
        made[0][0].forget_kernels()
        found = made.to(dtype)[0](images.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


def test_a_format_that_is_not_known_is_not_fused() -> None:
    assert not can_fuse(torch.float64)


def test_without_onednn_the_prefix_runs_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = family("mobilenet_v2")
    images = (torch.rand(3, 3, 64, 64) * 255).byte()
    with_it = FrozenPrefix(backbone, cut=None, taps=[len(backbone) - 1])
    monkeypatch.setattr(fusing.torch._C, "_has_mkldnn", False)
    without = FrozenPrefix(backbone, cut=None, taps=[len(backbone) - 1])
    assert count(with_it.stages) and not count(without.stages)
    torch.testing.assert_close(with_it(images).pooled[0], without(images).pooled[0], rtol=1e-4, atol=1e-5)


def test_the_size_met_first_does_not_matter() -> None:
    backbone = family("mobilenet_v2")
    images = (torch.rand(CHUNK, 3, 64, 64) * 255).byte()
    first, second = (FrozenPrefix(backbone, cut=None, taps=[len(backbone) - 1]) for _ in range(2))
    first.run(images[:1])
    assert torch.equal(first.run(images).pooled[0], second.run(images).pooled[0])


def test_it_can_be_copied_and_pickled() -> None:
    made = check([nn.Sequential(conv(), nn.ReLU())], fused=1)
    images = sample()
    with torch.no_grad():
        expected = made[0](images)
        assert torch.equal(copy.deepcopy(made)[0](images), expected)
        assert torch.equal(pickle.loads(pickle.dumps(made[0][0]))(images), expected)


# name → whether there is anything to fuse
FAMILIES = {
    "efficientnet_lite0": True,
    "resnet18": True,
    "vgg11_bn": True,
    "densenet121": True,
    "mobilenet_v3_small": True,
    "efficientnet_b0": True,
    "regnet_y_400mf": True,
    "convnext_tiny": False,
    "vit_b_32": False,
    "timm/test_resnet": True,
    "timm/test_efficientnet": True,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_as_it_did(name: str) -> None:
    made = check(list(family(name).stages), None, sample(SIZES[name]))
    assert bool(count(made)) == FAMILIES[name]
