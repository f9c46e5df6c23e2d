"""JPEGs that a GPU decodes; here torchvision's decoder on the CPU stands in for the GPU's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from tests.data.test_plain_jpeg import jpeg, picture
from tests.photos import make_photos
from toolkit.data import gpu_jpegs
from toolkit.data.decode import decode
from toolkit.data.gpu_jpegs import Encoded, GpuJpegs, clean_view_of, decoder_of, sample_error, upright
from toolkit.data.loading import clean_batches
from toolkit.data.manifest import Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.scan import scan
from toolkit.data.view_stream import Views, clean_views, stream_views
from toolkit.data.views import AUGMENTATIONS, clean_view

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SMALL = Preprocessing(36, 32, "bicubic")
BATCHES = [[(3, (0,)), (0, (0, 1, 5)), (7, (2,))], [(9, (0,)), (1, (0,))], [], [(11, (0,)), (4, (0, 300)), (5, (0,))]]


def decoded(files: list[Tensor]) -> list[Tensor]:
    return [decode_jpeg(file, mode=ImageReadMode.RGB) for file in files]


STAND_IN = GpuJpegs(CPU, decoded)


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    made = scan(make_photos(tmp_path / "photos", {"cat": 6, "dog": 6}))
    picture().save(made.file(9), "PNG")  # whatever its suffix says
    return made


def tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_pillow_turns_them(orientation: int) -> None:
    content = jpeg(orientation=orientation)
    (image,) = decoded([tensor(content)])
    found = upright(image, orientation)
    assert torch.equal(found, torch.from_numpy(np.array(decode(content))).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (36, 36), (285, 190), (33, 700), (1000, 37)])
@pytest.mark.parametrize("how", [SMALL, Preprocessing(37, 32, "bilinear"), Preprocessing(32, 32, "bicubic")])
def test_clean_views_are_pillows(size: tuple[int, int], how: Preprocessing) -> None:
    image = picture(*size)
    expected = clean_view(image, how).astype(int)
    found = clean_view_of(torch.from_numpy(np.array(image)).permute(2, 0, 1), how)
    assert found.dtype == torch.uint8 and found.shape == expected.shape
    assert np.array_equal(found.numpy(), expected)


def test_other_interpolations_are_refused() -> None:
    with pytest.raises(ValueError, match="bilinear or bicubic expected, got lanczos"):
        clean_view_of(torch.zeros(3, 40, 40, dtype=torch.uint8), Preprocessing(36, 32, "lanczos"))


def streamed(manifest: Manifest, **settings) -> list[Views]:
    keys = {"seed": 4, "workers": 0, "max_pixels": 10**6, **settings}
    return list(stream_views(manifest, BATCHES, SMALL, AUGMENTATIONS["standard"], **keys))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_what_it_gives_without(manifest: Manifest, workers: int) -> None:
    manifest.file(1).write_bytes(b"no image")
    for own, plain in zip(streamed(manifest, gpu=STAND_IN, workers=workers), streamed(manifest), strict=True):
        assert own.encoded is None and own.failures == plain.failures
        for name in ("rows", "numbers", "sizes", "digests"):
            assert np.array_equal(getattr(own, name), getattr(plain, name))
        assert torch.equal(own.pixels, plain.pixels)


def test_it_is_the_decoder_that_decodes(manifest: Manifest) -> None:
    asked = []

    def black(files: list[Tensor]) -> list[Tensor]:
        asked.append(len(files))
        return [torch.zeros(3, 48, 64, dtype=torch.uint8) for _ in files]

    found = streamed(manifest, gpu=GpuJpegs(CPU, black))
    assert asked == [2, 1, 3]
    rows, numbers = (np.concatenate([getattr(one, name) for one in found]) for name in ("rows", "numbers"))
    is_black = torch.cat([one.pixels for one in found]).flatten(1).amax(1) == 0
    assert np.array_equal(is_black.numpy(), (numbers == 0) & (rows != 9))  # 9 is a PNG


def test_what_the_device_refuses_pillow_decodes(manifest: Manifest) -> None:
    def picky(files: list[Tensor]) -> list[Tensor]:
        if any(len(file) == manifest.file(3).stat().st_size for file in files):
            raise RuntimeError("nvjpegDecode failed: 2")
        return decoded(files)

    for own, plain in zip(streamed(manifest, gpu=GpuJpegs(CPU, picky)), streamed(manifest), strict=True):
        assert np.array_equal(own.rows, plain.rows) and own.failures == ()
        assert torch.equal(own.pixels, plain.pixels)


def test_a_file_that_nobody_can_decode_is_named(manifest: Manifest) -> None:
    content = manifest.file(3).read_bytes()
    at = content.index(b"\xff\xda")  # the scan's own header is cut away: a plain JPEG by what comes before
    manifest.file(3).write_bytes(content[:at] + b"\xff\xd9")

    def strict(files: list[Tensor]) -> list[Tensor]:
        raise RuntimeError("no")

    for gpu in (STAND_IN, GpuJpegs(CPU, strict)):
        first, *_ = streamed(manifest, gpu=gpu)
        assert [row for row, _ in first.failures] == [3] and first.failures[0][1]
        assert first.rows.tolist() == [0, 0, 0, 7] and first.pixels.shape == (4, 3, 32, 32)


def test_clean_views_come_as_batches(manifest: Manifest) -> None:
    rows = np.array([4, 0, 9, 7, 3])
    keys = {"batch_size": 2, "workers": 0, "max_pixels": 10**6}
    found = list(clean_views(manifest, rows, SMALL, gpu=STAND_IN, **keys))
    for own, plain in zip(found, clean_batches(manifest, rows, SMALL, **keys), strict=True):
        assert own.rows.tolist() == plain.rows.tolist() and own.labels.tolist() == plain.labels.tolist()
        assert torch.equal(own.inputs, plain.inputs)


def test_files_go_through_one_tensor() -> None:
    contents = [b"abc", b"", b"defgh"]
    encoded = Encoded.of([4, 0, 2], [1, 6, 8], contents)
    assert [file.numpy().tobytes() for file in encoded.files()] == contents
    assert encoded.places == (4, 0, 2) and encoded.orientations == (1, 6, 8)


def test_a_decoder_is_trusted_only_with_the_same_picture() -> None:
    assert sample_error(STAND_IN) is None
    wrong = sample_error(GpuJpegs(CPU, lambda files: [image.flip(0) for image in decoded(files)]))
    assert wrong == "gives another picture than Pillow's"
    smaller = sample_error(GpuJpegs(CPU, lambda files: [image[:, 1:] for image in decoded(files)]))
    assert smaller == "gives another picture than Pillow's"

    def broken(files: list[Tensor]) -> list[Tensor]:
        raise RuntimeError("nvjpegCreate failed:\n 7")

    assert sample_error(GpuJpegs(CPU, broken)) == "fails (nvjpegCreate failed: 7)"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, int]]]:
    """A machine of 8 cores with a GPU that has the engine, on which torchvision decodes on the CPU."""
    has = {"capability": (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: has["capability"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr("torchvision.io.decode_jpeg", lambda files, mode, device: decoded(files))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: torch.Stream(CPU))
    monkeypatch.delenv(gpu_jpegs.SWITCH, raising=False)
    gpu_jpegs._decoder_of.cache_clear()
    yield has
    gpu_jpegs._decoder_of.cache_clear()


def test_a_gpu_with_an_engine_and_few_cores_decodes(engine: dict[str, tuple[int, int]]) -> None:
    found = decoder_of(GPU, SMALL)
    assert found is not None and found.device == GPU and found is decoder_of(GPU, SMALL)
    assert decoder_of(CPU, SMALL) is decoder_of(GPU, Preprocessing(36, 32, "nearest")) is None


def test_without_an_engine_the_cpu_decodes(engine: dict[str, tuple[int, int]]) -> None:
    engine["capability"] = (8, 6)
    assert decoder_of(GPU, SMALL) is None


def test_with_many_cores_the_cpu_decodes(engine: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(13), raising=False)
    assert decoder_of(GPU, SMALL) is None


def test_it_can_be_switched_off(engine: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_JPEGS", "cpu")
    assert decoder_of(GPU, SMALL) is None


def test_it_can_be_asked_for(engine: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    engine["capability"] = (8, 6)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setenv("TOOLKIT_JPEGS", "gpu")
    assert decoder_of(GPU, SMALL) is not None and decoder_of(CPU, SMALL) is None


def test_a_decoder_that_fails_is_told_of_and_left_alone(
    engine: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(files: list[Tensor], **_: object) -> list[Tensor]:
        raise RuntimeError("torchvision was built without nvJPEG")

    monkeypatch.setattr("torchvision.io.decode_jpeg", broken)
    assert decoder_of(GPU, SMALL) is decoder_of(GPU, SMALL) is None
    told = capsys.readouterr().err
    assert told.count("torchvision was built without nvJPEG") == 1 and "JPEGs are decoded by the CPU" in told
