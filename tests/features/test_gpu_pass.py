"""Passes whose JPEGs a GPU decodes, and what a GPU's pass asks for; a CPU stands in for the GPU."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import pytest
import torch

from tests.data.test_gpu_jpegs import STAND_IN
from tests.evaluation.nets import net
from tests.features.small import assert_same, everything, fetch, live
from tests.training.tiny import tiny_backbone
from toolkit.data.gpu_jpegs import GpuJpegs
from toolkit.data.manifest import Manifest
from toolkit.evaluation import blocks
from toolkit.evaluation.blocks import file_blocks
from toolkit.evaluation.ensemble import Ensemble
from toolkit.features import jpegs, passes
from toolkit.features import request as requests
from toolkit.features.prefix import CHUNK, CHUNK_ON_GPU, chunk_of
from toolkit.features.request import Request


def decodes(*what: object) -> object:
    return STAND_IN


class Ahead:
    """What was decoded by Pillow beforehand."""

    def get(self, path: str) -> NoReturn:
        raise AssertionError("it depends on how far it got")


def test_features_are_those_of_pillows_pixels_and_kept_apart(cache, manifest, monkeypatch):
    wanted = Request(tiny_backbone(), (1, 3))
    plain = everything(fetch(cache, wanted, manifest))
    monkeypatch.setattr(requests, "jpeg_decoder", decodes)
    monkeypatch.setattr(passes, "take", lambda *_: Ahead())
    found = fetch(cache, wanted, manifest)
    assert found.n_computed == 12, "another decoder, other numbers"
    assert fetch(cache, wanted, manifest).n_computed == 0
    for name, own in everything(found).items():
        assert torch.equal(own, plain[name]), "the stand-in decodes as Pillow does"
    views = fetch(cache, Request(tiny_backbone(), (1, 3), views=3), manifest)
    assert views.n_computed == 24, "the clean view is there"
    augmented = live(views.request, manifest, range(12))
    assert_same(
        {name: own[:, 1:] for name, own in everything(views).items()}, {n: o[:, 1:] for n, o in augmented.items()}
    )


def test_pixels_and_sources_are_pillows(cache, manifest, monkeypatch):
    monkeypatch.setattr(requests, "jpeg_decoder", decodes)
    request = Request(tiny_backbone(), cut=0)
    assert request.jpegs is None
    assert_same(everything(fetch(cache, request, manifest)), live(request, manifest, range(12)))


def test_pixels_do_not_go_over_a_gpu(cache, manifest, monkeypatch):
    where = []
    real = passes._group
    monkeypatch.setattr(passes, "_group", lambda *given: where.append(given[2]) or real(*given))
    request = Request(tiny_backbone(), cut=0, device=torch.device("cuda", 0))
    assert len(fetch(cache, request, manifest)) == 12 and set(where) == {torch.device("cpu")}


def test_a_gpu_has_larger_passes_and_says_what_decodes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    gpu = torch.device("cuda", 0)
    assert (chunk_of(torch.device("cpu")), chunk_of(gpu)) == (CHUNK, CHUNK_ON_GPU)
    monkeypatch.setattr(requests, "jpeg_decoder", lambda backbone, identity, device: None)
    by_pillow = Request(tiny_backbone(), device=gpu).about()
    assert (by_pillow["chunk"], by_pillow["device"], "jpegs" in by_pillow) == (CHUNK_ON_GPU, "Some GPU", False)
    monkeypatch.setattr(requests, "jpeg_decoder", decodes)
    assert Request(tiny_backbone(), device=gpu).about() == {**by_pillow, "jpegs": "decoded by the device"}


def test_predictions_read_the_same_images(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest.file(5).write_bytes(b"no image")
    ensemble, rows = Ensemble.of([net(side=12), net(side=20, seed=1)]), np.random.default_rng(0).permutation(12)
    (plain,) = file_blocks(ensemble, manifest, rows, workers=0)
    monkeypatch.setattr(blocks, "decoder_of", decodes)
    monkeypatch.setenv("TOOLKIT_JPEGS", "gpu")
    (block,) = file_blocks(ensemble, manifest, rows, workers=0)
    assert block.rows.tolist() == plain.rows.tolist() and block.failures == plain.failures
    for decoding, pixels in block.on_cpu().pixels.items():
        assert torch.equal(pixels, plain.pixels[decoding])


@pytest.mark.parametrize(("noise", "taken"), [(0, True), (120, False)])
def test_a_decoder_is_taken_only_where_features_stay_where_they_are(
    noise: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(files: list[torch.Tensor]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        found = [image.int() for image in STAND_IN.decode(files)]
        changed = [image + torch.randint(-noise, noise + 1, image.shape, generator=generator) for image in found]
        return [image.clamp(0, 255).to(torch.uint8) for image in changed]

    decoder = GpuJpegs(torch.device("cpu"), decode)
    monkeypatch.setattr(jpegs, "decoder_of", lambda device, preprocessing: decoder)
    request = Request(tiny_backbone(), (3,))
    assert (request.jpegs is decoder) == taken
    assert jpegs.jpeg_error(request.backbone, decoder) > 0 or taken
    jpegs._errors.clear()
    monkeypatch.setenv("TOOLKIT_JPEGS", "gpu")
    assert request.jpegs is decoder
