"""JPEGs that a GPU decodes with an engine of its own (nvJPEG, through torchvision), where it has one to be trusted.

An A100's engine decodes 8,000 images of 551 × 676 pixels a second, a core of a CPU 390 (pytorch/vision, pull request
8496): it is worth it where a GPU has few cores beside it. Without such an engine nvJPEG does 1,700, one at a time.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toolkit.data.decode import UnreadableImage, decode
from toolkit.data.pillow_resize import SUPPORT, resized
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.views import clean_view, decoded_px
from toolkit.progress import say

# Compute capabilities of the GPUs that have the engine: A100 and A30, H100 and H200, B200 and B300.
WITH_ENGINE = ((8, 0), (9, 0), (10, 0), (10, 3))
MOST_CORES = 12  # of the CPU: as many decode 4,700 a second, and the engine shares its time with the passes
TRUSTED_ERROR = 3.0  # of 255, mean over the pixels of a sample: chroma is enlarged a little differently
SWITCH = "TOOLKIT_JPEGS"  # cpu: never by a GPU; gpu: by any that can, whatever difference it makes

_Decode = Callable[[list[Tensor]], list[Tensor]]


class Encoded(NamedTuple):
    """JPEG files among K images: their places in 0..K−1, their EXIF orientations, and their bytes, uint8 (B,), one
    after the other; `ends` says where each of them ends."""

    places: tuple[int, ...]
    orientations: tuple[int, ...]
    ends: tuple[int, ...]
    content: Tensor

    @classmethod
    def of(cls, places: Sequence[int], orientations: Sequence[int], contents: Sequence[bytes]) -> Encoded:
        """Return files as one tensor, which processes hand over at once."""
        ends = np.cumsum([len(content) for content in contents]).tolist()
        joined = torch.from_numpy(np.frombuffer(bytearray(b"".join(contents)), np.uint8))
        return cls(tuple(places), tuple(orientations), tuple(ends), joined)

    def files(self) -> list[Tensor]:
        """Return the files' bytes, uint8 (B,) each."""
        return [self.content[start:end] for start, end in zip((0, *self.ends), self.ends, strict=False)]


class GpuJpegs:
    """Decodes plain JPEGs on a device and makes clean views of them there: as Pillow would of the same pixels.

    decode: uint8 (B,) on the CPU, each a file → uint8 (3, H, W) each, on the device.
    """

    def __init__(self, device: torch.device, decode: _Decode) -> None:
        self.device = device
        self.decode = decode

    def complete(
        self, pixels: Tensor, encoded: Encoded, preprocessing: Preprocessing, max_pixels: int
    ) -> tuple[Tensor, dict[int, str]]:
        """Return the clean views of K images on the device, uint8 (K, 3, S, S), in their order.

        pixels: uint8 (K − J, 3, S, S), those of the images that are not among the J that are `encoded`. A file that the
        device refuses is decoded by Pillow; with the views comes, by place, why a file cannot be read at all: its view
        is black.
        """
        n, side = len(pixels) + len(encoded.places), preprocessing.crop_px
        whole = torch.zeros((n, 3, side, side), dtype=torch.uint8, device=self.device)
        others = np.setdiff1d(np.arange(n), encoded.places)
        whole[torch.from_numpy(others).to(self.device)] = pixels.to(self.device, non_blocking=True)
        refused: dict[int, str] = {}
        files = encoded.files()
        for place, turn, file, image in zip(
            encoded.places, encoded.orientations, files, self._decoded(files), strict=True
        ):
            if image is not None:
                whole[place] = clean_view_of(upright(image, turn), preprocessing)
                continue
            try:
                by_pillow = decode(file.numpy().tobytes(), max_pixels, decoded_px(preprocessing))
                whole[place] = torch.from_numpy(clean_view(by_pillow, preprocessing)).to(self.device)
            except UnreadableImage as reason:
                refused[place] = str(reason)
        return whole, refused

    def _decoded(self, files: list[Tensor]) -> list[Tensor | None]:
        """Return the images of files, None for each that the device refuses."""
        if self.device.type == "cuda":
            # The engine writes into freed memory that work still queued on this stream may be reading, unless that
            # is done first (pytorch/vision, pull request 9606).
            torch.cuda.current_stream(self.device).synchronize()
        try:
            return list(self.decode(files))
        except RuntimeError:
            if len(files) == 1:
                return [None]
            return [image for file in files for image in self._decoded([file])]


def clean_view_of(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return view 0 of uint8 (3, H, W), uint8 (3, S, S) on its device: `clean_view`'s, to the bit.

    Raises ValueError for another interpolation than bilinear and bicubic, and for an image that is too large.
    """
    if preprocessing.interpolation not in SUPPORT:
        raise ValueError(f"{' or '.join(SUPPORT)} expected, got {preprocessing.interpolation}")
    height, width = image.shape[1:]
    long = int(preprocessing.resize_px * max(width, height) / min(width, height))
    size = (preprocessing.resize_px, long) if width <= height else (long, preprocessing.resize_px)
    side = preprocessing.crop_px
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)  # torchvision's rule
    return resized(image, size, (left, top, left + side, top + side), preprocessing.interpolation)


def upright(image: Tensor, orientation: int) -> Tensor:
    """Return (3, H, W) turned and mirrored as an EXIF orientation, 1..8, asks for."""
    if orientation in (2, 7):
        image = image.flip(2)
    if orientation in (4, 5):
        image = image.flip(1)
    turns = {3: 2, 5: -1, 6: -1, 7: -1, 8: 1}.get(orientation, 0)  # counter-clockwise
    return image.rot90(turns, (1, 2)) if turns else image


def decoder_of(device: torch.device, preprocessing: Preprocessing) -> GpuJpegs | None:
    """Return what decodes JPEGs on a device, or None where that is no gain or cannot be had.

    A decision by what the machine has, so that it is the same for one image and for a million.
    """
    if device.type != "cuda" or os.environ.get(SWITCH) == "cpu" or preprocessing.interpolation not in SUPPORT:
        return None
    return _decoder_of(device) if is_forced() or _pays(device) else None


def is_forced() -> bool:
    """Return whether somebody has asked for it, whatever difference it makes."""
    return os.environ.get(SWITCH) == "gpu"


def _pays(device: torch.device) -> bool:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores <= MOST_CORES and torch.cuda.get_device_capability(device) in WITH_ENGINE


@functools.cache
def _decoder_of(device: torch.device) -> GpuJpegs | None:
    try:
        decoder = nvjpeg(device)
    except (ImportError, RuntimeError):
        return None
    error = sample_error(decoder)
    if error is not None:
        say(f"note: JPEGs are decoded by the CPU, since the GPU's decoder {error}")
        return None
    return decoder


def nvjpeg(device: torch.device) -> GpuJpegs:
    """Return torchvision's decoder on a device, whether or not it can be trusted; raises what importing it raises."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return GpuJpegs(device, lambda files: decode_jpeg(files, mode=ImageReadMode.RGB, device=device))


def sample_error(decoder: GpuJpegs) -> str | None:
    """Return what is wrong with what a decoder makes of two sample images, None if nothing is."""
    rows, columns = np.mgrid[0:120, 0:160]
    waves = [128 + 100 * np.sin((rows * a + columns * b) / 40) for a, b in ((1, 2), (2, -1), (0.5, 1))]
    image = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    contents = []
    for sample in (image, image.convert("L")):
        file = io.BytesIO()
        sample.save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    encoded = Encoded.of((0, 1), (1, 1), contents)
    try:
        found = [image.cpu().numpy() for image in decoder.decode(encoded.files())]
    except Exception as error:  # a library or a driver that does not fit
        return f"fails ({' '.join(str(error).split()) or type(error).__name__})"
    for content, pixels in zip(contents, found, strict=True):
        expected = np.asarray(decode(content)).transpose(2, 0, 1)
        if pixels.shape != expected.shape or np.abs(pixels.astype(float) - expected).mean() > TRUSTED_ERROR:
            return "gives another picture than Pillow's"
    return None
