"""Whether a GPU's own JPEG decoder may stand in for Pillow before a backbone: by how far its features move."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from toolkit.backbones.backbone import Backbone
from toolkit.data.decode import DEFAULT_MAX_PIXELS, decode
from toolkit.data.gpu_jpegs import Encoded, GpuJpegs, decoder_of, is_forced
from toolkit.data.views import clean_view
from toolkit.features.prefix import HALF_PRECISION_ERROR, FrozenPrefix
from toolkit.features.sample import sample_images

SAMPLES = 2
QUALITY = 90
_errors: dict[tuple[str, torch.device], float] = {}


def jpeg_decoder(backbone: Backbone, identity: str, device: torch.device) -> GpuJpegs | None:
    """Return what decodes JPEGs on a device, or None where the CPU does.

    That is where the device has nothing for it that is worth while, and where the backbone's features would move by
    more than half precision may move them; unless somebody asks for it. identity: of the backbone's weights.
    """
    decoder = decoder_of(device, backbone.preprocessing)
    if decoder is None or is_forced():
        return decoder
    key = identity, device
    if key not in _errors:
        _errors[key] = jpeg_error(backbone, decoder)
    return decoder if _errors[key] < HALF_PRECISION_ERROR else None


def jpeg_error(backbone: Backbone, decoder: GpuJpegs) -> float:
    """Return |d − p| / |p| of the last stage's pooled features, JPEGs of sample images being decoded by the device and
    by Pillow."""
    how = backbone.preprocessing
    side = how.resize_px * 3 // 2
    contents = []
    for sample in sample_images(SAMPLES, side).permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(sample)).save(file, "JPEG", quality=QUALITY)
        contents.append(file.getvalue())
    by_pillow = torch.from_numpy(np.stack([clean_view(decode(content), how) for content in contents]))
    encoded = Encoded.of(range(SAMPLES), [1] * SAMPLES, contents)
    by_device, _ = decoder.complete(by_pillow[:0], encoded, how, DEFAULT_MAX_PIXELS)
    prefix = FrozenPrefix(backbone, cut=None, taps=(len(backbone) - 1,), device=decoder.device)
    expected, found = (prefix(pixels).pooled[0] for pixels in (by_pillow, by_device))
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
