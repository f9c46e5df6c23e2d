"""Folding BatchNorm into convolutions changes nothing but rounding, and nothing at all of the originals."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.features.small import SIZES, family
from tests.training.tiny import tiny_backbone
from toolkit.features import fold
from toolkit.features.fold import frozen_copies
from toolkit.features.prefix import FrozenPrefix
from toolkit.features.sample import sample_images


def norm(width: int, **settings) -> nn.BatchNorm2d:
    """Return a BatchNorm with statistics, scale and shift of its own."""
    made = nn.BatchNorm2d(width, **settings)
    for tensor, low, high in (
        (made.running_mean, -0.5, 0.5),
        (made.running_var, 0.3, 2.0),
        (made.weight, 0.5, 1.5),
        (made.bias, -0.5, 0.5),
    ):
        if tensor is not None:
            nn.init.uniform_(tensor, low, high)
    return made


def norms_of(stages: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in stages.modules())


def outputs(stages, images: Tensor) -> list[Tensor]:
    made = []
    with torch.no_grad():
        for stage in stages:
            images = stage(images)
            made.append(images)
    return made


def sample(size: int = 24, n: int = 2) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def check(stages: list[nn.Module], left: int, images: Tensor | None = None) -> nn.ModuleList:
    """Fold; compare every stage's output on other images; count the BatchNorms that are left."""
    for stage in stages:
        stage.eval()
    images = sample() if images is None else images
    folded = frozen_copies(stages, images).stages
    other = images.flip(2) * 1.5 + 0.1
    for expected, found in zip(outputs(stages, other), outputs(folded, other), strict=True):
        assert not torch.isnan(expected).any()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert norms_of(folded) == left
    return folded


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def conv(before: int = 3, after: int = 6, **settings) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, **settings)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"eps": 0.1}, {"momentum": None}], ids=str)
def test_a_pair_is_folded(bias, settings):
    folded = check([nn.Sequential(conv(bias=bias), norm(6, **settings), nn.ReLU())], left=0)
    assert folded[0][0].bias is not None and isinstance(folded[0][1], nn.Identity)


@pytest.mark.parametrize(
    "settings", [{"groups": 3}, {"stride": 2}, {"padding_mode": "reflect"}, {"dilation": 2}], ids=str
)
def test_convolutions_of_every_kind(settings):
    check([nn.Sequential(conv(**settings), norm(6), nn.Hardswish(inplace=True), conv(6, 4), norm(4))], left=0)


def test_a_norm_without_statistics_of_its_own_stays():
    check([nn.Sequential(conv(), norm(6), conv(6, 6), nn.BatchNorm2d(6, track_running_stats=False))], left=1)


def test_a_norm_before_its_convolution_stays():
    check([nn.Sequential(norm(3), conv(), nn.ReLU(), norm(6), conv(6, 6), norm(6))], left=2)


class Used(nn.Module):
    """A block whose forward is a given function of itself."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(self, x)
        return result


def modules() -> dict[str, nn.Module]:
    return {"first": conv(3, 3), "norm": norm(3), "other": norm(3), "second": conv(3, 3)}


FORWARDS = {
    "a convolution used twice": lambda m, x: m.norm(m.first(m.first(x))) + m.other(x),
    "a norm used twice": lambda m, x: m.norm(m.first(x)) + m.norm(m.second(x)) + m.other(x),
    "the pair used twice": lambda m, x: m.norm(m.first(m.norm(m.first(x)))) + m.other(x),
    "a convolution that feeds two norms": lambda m, x: m.norm(y := m.first(x)) + m.other(y),
    "an output that goes elsewhere too": lambda m, x: m.norm(y := m.first(x)) + y + m.other(x),
    "a look into the norm": lambda m, x: m.norm(m.first(x)) * m.norm.weight.sum() + m.other(x),
    "a call by keyword": lambda m, x: m.norm(input=m.first(x)) + m.other(x),
    "weights without their module": lambda m, x: m.norm(F.conv2d(x, m.first.weight, padding=1)) + m.other(x),
}
# One pair that can be folded beside another that cannot, and is seen not to be one without trying.
BESIDE = {
    "an output that is changed in place": lambda m, x: m.norm(m.first(x).relu_()) + m.other(m.second(x)),
    "an output that is changed into another": lambda m, x: m.norm(m.first(x) * 2) + m.other(m.second(x)),
}


@pytest.mark.parametrize("forward", [*FORWARDS, *BESIDE])
def test_whatever_a_forward_does_the_numbers_stay(forward):
    check([Used({**FORWARDS, **BESIDE}[forward], **modules())], left=1 if forward in BESIDE else 2)


def test_one_odd_stage_does_not_cost_the_others_their_folding():
    odd = Used(FORWARDS["an output that goes elsewhere too"], **modules())
    check([nn.Sequential(conv(3, 3), norm(3)), odd, nn.Sequential(conv(), norm(6))], left=2)


def test_what_goes_from_stage_to_stage_stays_what_it_was():
    """A convolution and its norm in two stages: between them a cut or a tap may be."""
    stages = [conv(), norm(6), nn.Sequential(nn.ReLU(), conv(6, 5)), nn.Sequential(norm(5), conv(5, 4), norm(4))]
    check(stages, left=2)


def test_a_stage_may_be_a_bare_module():
    check([conv(), nn.Identity(), norm(6)], left=1)


def test_modules_shared_by_stages():
    shared, block = conv(3, 3), nn.Sequential(conv(3, 3), norm(3))
    check([nn.Sequential(shared, norm(3)), nn.Sequential(shared, norm(3))], left=2)
    check([block, nn.ReLU(), block], left=1)


def test_a_stage_that_works_in_place_does_not_spoil_the_comparison():
    stages = [nn.Sequential(conv(), norm(6)), nn.Sequential(nn.ReLU(inplace=True), conv(6, 6), norm(6))]
    images = sample()
    before = images.clone()
    check([nn.ReLU(inplace=True), *stages], left=0, images=images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", ["parametrized", "standardized"])
def test_weights_that_are_made_at_every_call_stay(kind):
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std(
                (1, 2, 3), keepdim=True
            )
            return F.conv2d(x, weight, self.bias, padding=1)

    made = Standardized(3, 6, 3) if kind == "standardized" else nn.utils.parametrizations.weight_norm(conv())
    check([nn.Sequential(made, norm(6), conv(6, 6))], left=1)


def test_weights_that_are_no_numbers_stay():
    stages = [nn.Sequential(conv(), norm(6)), nn.Sequential(conv(6, 6), norm(6))]
    with torch.no_grad():
        stages[1][0].weight[0, 0, 0, 0] = float("nan")
    folded = frozen_copies([stage.eval() for stage in stages], sample()).stages
    assert norms_of(folded[0]) == 0 and norms_of(folded[1]) == 1
    assert torch.isnan(outputs(folded, sample())[1]).any()


def test_a_channel_that_never_moved_is_no_danger():
    """A running variance of nearly zero: the folded weights are large, the numbers the same."""
    stage = nn.Sequential(conv(), norm(6), nn.ReLU())
    stage[1].running_var[2] = 1e-12
    stage[0].weight.data[2] *= 1e-6
    check([stage], left=0)


def test_the_originals_are_not_touched():
    backbone = tiny_backbone()
    stages = backbone.stages
    stages[1].train()
    stages[2][1].eval()
    calls = []
    stages[0].register_forward_hook(lambda *_: calls.append(1))
    state = {key: value.clone() for key, value in nn.ModuleList(stages).state_dict().items()}
    modes = [module.training for stage in stages for module in stage.modules()]
    folded = frozen_copies(stages, sample()).stages
    assert modes == [module.training for stage in stages for module in stage.modules()]
    assert all(torch.equal(value, state[key]) for key, value in nn.ModuleList(stages).state_dict().items())
    assert all(parameter.requires_grad for stage in stages for parameter in stage.parameters())
    ours = {parameter.data_ptr() for parameter in folded.parameters()}
    assert not ours & {parameter.data_ptr() for stage in stages for parameter in stage.parameters()}
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert not any(module.training for module in folded.modules())
    assert norms_of(folded) == 0 and norms_of(nn.ModuleList(stages)) == 4


def test_the_random_state_is_not_touched():
    images, stage = sample(), nn.Sequential(conv(), norm(6), nn.Dropout(0.5)).train()
    state = torch.get_rng_state()
    frozen_copies([stage], images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_prefix_gives_the_same_numbers_whatever_comes_behind_it(depth):
    """The first stages alone, as a network runs them, and the same stages within a longer pass, as a probe does."""
    for name in ("tiny", "mobilenet_v3_small"):
        backbone = family(name)
        pixels = sample_images(3, backbone.preprocessing.crop_px)
        whole = FrozenPrefix(backbone, cut=depth, taps=range(len(backbone)))(pixels)
        part = FrozenPrefix(backbone, cut=depth, taps=range(depth))(pixels)
        assert torch.equal(whole.at_cut, part.at_cut)
        assert all(torch.equal(one, other) for one, other in zip(part.pooled, whole.pooled, strict=False))


class Padding(nn.Conv2d):
    """A convolution that is said not to pad and pads its input in a step of its own; `before` of it at the front."""

    def __init__(self, *shape: int, before: float = 0.5, mode: str = "constant", **settings) -> None:
        super().__init__(*shape, **settings)
        self.before, self.mode = before, mode

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for n, k, step, apart in zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True):
            missing = max(0, (-(-n // step) - 1) * step + (k - 1) * apart + 1 - n)
            first = int(missing * self.before)
            sides = [first, missing - first, *sides]
        return super().forward(F.pad(x, sides, mode=self.mode))


def plain_convolutions(stages: nn.Module) -> int:
    return sum(type(module) is nn.Conv2d for module in stages.modules())


@pytest.mark.parametrize("size", [23, 24])
@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2},
        {"stride": 2, "groups": 3, "bias": False},
        {"stride": (1, 2)},
        {"stride": 3},
        {"stride": 1},
        {"stride": 1, "dilation": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", [2, 3, 5, (3, 4)], ids=str)
def test_padding_goes_into_the_kernel(size, settings, kernel):
    stage = nn.Sequential(Padding(3, 6, kernel, **settings), norm(6), nn.ReLU(), conv(6, 4))
    folded = check([stage], left=0, images=sample(size))
    height, width = folded[0][0].kernel_size
    sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    shape = zip(sides, folded[0][0].stride, (size, size), strict=True)
    missing = [
        max(0, (-(-n // step) - 1) * step + (k - 1) * settings.get("dilation", 1) + 1 - n) for k, step, n in shape
    ]
    odd_and_spread = settings.get("dilation", 1) > 1 and any(n % 2 for n in missing)
    assert type(folded[0][0]) is (Padding if odd_and_spread or not any(missing) else nn.Conv2d)
    if type(folded[0][0]) is nn.Conv2d:
        assert (height, width) == tuple(k + n % 2 for k, n in zip(sides, missing, strict=True))
        images = sample(size).flip(3)
        assert folded[0](images).shape == stage(images).shape


@pytest.mark.parametrize("settings", [{"before": 0.0}, {"before": 1.0}, {"mode": "reflect"}], ids=str)
def test_padding_of_another_kind_stays(settings):
    """Four rows are missing: two on either side is what is meant by "same"."""
    stage = nn.Sequential(Padding(3, 6, 5, **settings), norm(6))
    assert plain_convolutions(check([stage], left=1)) == 0


def test_padding_without_a_norm_behind_it():
    assert plain_convolutions(check([Padding(3, 6, 3, stride=2), nn.ReLU()], left=0)) == 1


def test_a_padding_convolution_used_at_two_sizes_stays():
    stage = Used(lambda m, x: m.first(m.first(x)), first=Padding(3, 3, 3, stride=2))
    assert plain_convolutions(check([stage], left=0)) == 0


def test_the_embedded_family_pads_nowhere():
    """Its layers are TensorFlow's; at the size of its images none copies its input any more."""
    backbone = family("efficientnet_lite0")
    folded = frozen_copies(backbone.stages, sample(SIZES.get("efficientnet_lite0", 32))).stages
    convolutions = [module for module in folded.modules() if isinstance(module, nn.Conv2d)]
    before = [module for module in nn.ModuleList(backbone.stages).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == len(before) == plain_convolutions(folded) > plain_convolutions(nn.ModuleList(before))


# families whose norms cannot all be folded: DenseNet's stand before its convolutions
LEFT = {"densenet121": 62}


def check_family(name: str) -> None:
    backbone = family(name)
    size = SIZES.get(name, 32)
    images = sample(size)
    folded = frozen_copies(backbone.stages, images).stages
    other = sample(size).flip(3) * 1.3
    before = norms_of(nn.ModuleList(backbone.stages))
    for expected, found in zip(outputs(backbone.stages, other), outputs(folded, other), strict=True):
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm())
    assert norms_of(folded) == (LEFT.get(name, 0) if before else 0), (before, norms_of(folded))


@pytest.mark.parametrize("name", ["tiny", "mobilenet_v3_small", "timm/test_efficientnet", "timm/test_vit"])
def test_families_are_folded(name):
    check_family(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_every_family_is_folded(name):
    check_family(name)


def test_too_large_a_difference_is_not_taken_for_rounding(monkeypatch):
    real = fold._fold

    def wrong(stages, pair):
        real(stages, pair)
        stages.get_submodule(pair.convolution).bias += 1e-2

    monkeypatch.setattr(fold, "_fold", wrong)
    stages = [nn.Sequential(conv(), norm(6)).eval()]
    assert norms_of(frozen_copies(stages, sample()).stages) == 1


def test_copies_are_of_this_moment():
    stage = nn.Sequential(conv(), norm(6)).eval()
    folded = frozen_copies([stage], sample()).stages
    before = outputs(folded, sample())[-1].clone()
    with torch.no_grad():
        stage[0].weight.zero_()
    assert torch.equal(outputs(folded, sample())[-1], before)
    assert not torch.equal(outputs(copy.deepcopy([stage]), sample())[-1], before)


def test_autocast_around_it_changes_nothing():
    """As a Trainer's step of mixed precision makes a prefix."""
    backbone = family("mobilenet_v3_small")
    size = SIZES["mobilenet_v3_small"]
    expected = frozen_copies(backbone.stages, sample(size)).stages.state_dict()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = frozen_copies(backbone.stages, sample(size)).stages.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected) and expected.keys() == found.keys()
