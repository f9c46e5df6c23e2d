"""The frozen forward: one fixed shape, the same numbers in any company, and the images that it is tried out on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.features.small import SIZES, family
from tests.training.tiny import tiny_backbone
from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import as_backbone, build_backbone
from toolkit.backbones.taps import tap_widths
from toolkit.errors import SettingError
from toolkit.features.prefix import CHUNK, Activations, FrozenPrefix, in_chunks
from toolkit.features.sample import CONTRAST, sample_images
from toolkit.heads.linear import LinearHead
from toolkit.plan import FreezeSpec
from toolkit.training.network import TransferNetwork
from toolkit.training.trained import TrainedModel

FAST = ["tiny", "mobilenet_v3_small"]


@pytest.fixture(scope="module", params=FAST)
def backbone(request) -> Backbone:
    return family(request.param)


def pixels_for(backbone: Backbone, n: int) -> torch.Tensor:
    side = backbone.preprocessing.crop_px
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_an_image_gives_the_same_numbers_in_any_company(backbone):
    n = len(backbone)
    prefix = FrozenPrefix(backbone, cut=n - 1, taps=[0, n - 2])
    pixels = pixels_for(backbone, 70)
    whole = prefix(pixels)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    for rows in (order, order[:40], order[:1], torch.arange(1, 70), order[:0]):
        part = prefix(pixels[rows])
        assert torch.equal(part.at_cut, whole.at_cut[rows])
        assert all(torch.equal(one, other[rows]) for one, other in zip(part.pooled, whole.pooled, strict=True))


def test_every_forward_has_one_shape(backbone):
    shapes = []
    prefix = FrozenPrefix(backbone, cut=1, taps=[])
    prefix.stages[0].register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0])))
    for n in (0, 1, 31, 32, 33, 70):
        assert len(prefix(pixels_for(backbone, n)).at_cut) == n
    assert set(shapes) == {CHUNK}


@pytest.mark.parametrize("size", [(48, 48), (57, 57), (64, 64), (72, 72), (57, 64)], ids=str)
def test_images_of_another_size_are_padded_as_their_stages_pad_them(size):
    """TensorFlow's "same" padding depends on the size; folded for one, it is wrong for another."""
    backbone = build_backbone("efficientnet_lite0", pretrained=False, image_size_px=64)
    images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prefix = FrozenPrefix(backbone, cut=6, taps=[5])
    for _ in range(2):
        found = prefix(images)
        with torch.no_grad():
            activation = prefix.normalise(images)
            for stage in backbone.stages[:6]:
                activation = stage(activation)
        assert found.at_cut.shape == activation.shape
        torch.testing.assert_close(found.at_cut, activation, rtol=1e-3, atol=1e-4)


def test_in_inference_mode_it_is_made_and_gives_the_same():
    backbone, pixels = tiny_backbone(), pixels_for(tiny_backbone(), 5)
    changing = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8))
    for made in (backbone, as_backbone([changing, *backbone.stages[1:]], preprocessing=backbone.preprocessing)):
        plain = FrozenPrefix(made, cut=3, taps=[2])
        with torch.inference_mode():
            inferred = FrozenPrefix(made, cut=3, taps=[2])
            assert torch.equal(inferred(pixels).at_cut, plain(pixels).at_cut)
        kinds = [[type(m).__name__ for m in made.stages.modules()] for made in (inferred, plain)]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize("cut, taps", [(None, []), (0, []), (5, []), (None, [4]), (2, [7])])
def test_a_prefix_of_no_stages_or_too_many_is_refused(cut, taps):
    with pytest.raises(SettingError, match="1 to 4 frozen stages expected"):
        FrozenPrefix(tiny_backbone(), cut=cut, taps=taps)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 70])
@pytest.mark.parametrize("kind", ["pixels", "activations", "pooled"])
def test_chunks_have_one_size_and_lose_nothing(count, kind):
    sizes = []
    pixels = torch.randint(1, 256, (count, 3, 2, 2), dtype=torch.uint8)
    pooled = torch.randn(count, 5)
    inputs = {
        "pixels": pixels,
        "activations": Activations(pixels.float(), (pooled, pooled + 1)),
        "pooled": Activations(None, (pooled,)),
    }[kind]

    def flat(part) -> torch.Tensor:
        tensors = [part] if kind == "pixels" else [*([] if part.at_cut is None else [part.at_cut]), *part.pooled]
        sizes.extend(len(tensor) for tensor in tensors)
        return torch.cat([tensor.float().flatten(1) for tensor in tensors], dim=1)

    expected = flat(inputs)
    sizes.clear()
    assert torch.equal(in_chunks(flat, inputs), expected)
    assert set(sizes) == {CHUNK}


def test_scores_of_a_model_do_not_depend_on_company(backbone):
    n = len(backbone)
    taps = (n - 2, n - 1)
    head = LinearHead(tap_widths(backbone, taps), 3)
    torch.nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
    network = TransferNetwork(backbone, head, FreezeSpec.at_cut(n, n - 1), taps=taps)
    model = TrainedModel.of(network, backbone, ("a", "b", "c"), 10**6)
    pixels = pixels_for(backbone, 70)
    whole = model.logits(pixels)
    assert whole.shape == (70, 3) and whole.dtype == torch.float32
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    network.train()
    for rows in (order, order[:5], torch.tensor([69]), torch.arange(40, 70), order[:0]):
        assert torch.equal(model.logits(pixels[rows]), whole[rows])
        stored = network.prefix()(pixels[rows])
        assert torch.equal(model.logits(stored), whole[rows])
    assert "3 classes: a, b, c" in str(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_company_in_every_family(name):
    backbone = family(name)
    n = len(backbone)
    prefix = FrozenPrefix(backbone, cut=n - 1, taps=[n - 2, n - 1])
    pixels = pixels_for(backbone, 33)
    whole = prefix(pixels)
    for rows in (torch.arange(33).flip(0), torch.tensor([32]), torch.arange(5, 20)):
        part = prefix(pixels[rows])
        assert torch.equal(part.at_cut, whole.at_cut[rows])
        assert all(torch.equal(one, other[rows]) for one, other in zip(part.pooled, whole.pooled, strict=True))


@pytest.mark.parametrize("size", [1, 2, 7, 32, 225])
def test_sample_images_are_the_same_every_time_and_look_like_photographs(size):
    images = sample_images(3, size)
    assert images.shape == (3, 3, size, size) and images.dtype == torch.uint8
    state = torch.get_rng_state()
    assert torch.equal(images, sample_images(3, size)) and torch.equal(torch.get_rng_state(), state)
    if size >= 32:
        assert not torch.equal(images, sample_images(3, size, seed=1))
        values = images.float()
        assert abs(float(values.mean()) - 128) < 5
        assert 0.8 * CONTRAST < float(values.std()) < 1.1 * CONTRAST
        steps = (values[..., 1:] - values[..., :-1]).std()
        assert float(steps) < 0.9 * float(values.std()), "neighbours are alike; in white noise it is 1.4"
    elif size == 1:
        assert (images == 128).all()
