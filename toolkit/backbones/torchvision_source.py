"""torchvision's networks by name: building, the transforms and weights they were published with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from toolkit.backbones.names import FAMILY_OF
from toolkit.backbones.parts import Network, State, check_image_size
from toolkit.backbones.torchvision_families import SPLIT
from toolkit.backbones.weights import from_url, load_state
from toolkit.data.preprocessing import Preprocessing

_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def published_weights(name: str) -> Any:
    """Return torchvision's weights entry: IMAGENET1K_V1, or the first where there is none of that name.

    V1 since features of the newer V2 recipes transfer worse while frozen.
    """
    from torchvision.models import get_model_weights

    entries = get_model_weights(name).__members__
    return entries.get("IMAGENET1K_V1") or next(iter(entries.values()))


def preprocessing(name: str) -> Preprocessing:
    """Return the transforms that the weights were published with."""
    transforms = published_weights(name).transforms()
    return Preprocessing(
        resize_px=transforms.resize_size[0],
        crop_px=transforms.crop_size[0],
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def network(name: str, image_size_px: int | None, published: bool) -> Network:
    """Build the network, with the published weights in it when `published`.

    A ViT has a position embedding for every patch: for another image size it is built at that size, which must be
    a multiple of its patch size, and the embedding of any weights is interpolated. Swin pads its windows and takes
    any size.
    """
    from torchvision.models import get_model

    prepared = preprocessing(name)
    is_vit = FAMILY_OF[name] == "ViT"
    patch_px = int(name.rsplit("_", 1)[1]) if is_vit else 1
    check_image_size(name, image_size_px, patch_px)
    size_px = image_size_px or prepared.crop_px
    model = get_model(name, weights=None, **({"image_size": size_px} if is_vit else {}))

    def adapt(state: State) -> State:
        renamed = {_OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}
        return _resampled(renamed, size_px, patch_px) if is_vit else renamed

    split = SPLIT[FAMILY_OF[name]]
    if not published:
        return Network(model, split, prepared, adapt)
    entry = published_weights(name)
    state, sha256 = from_url(name, entry.url)
    load_state(model, adapt(state), split(model).classifier, f"{name}'s published file")
    return Network(model, split, prepared, adapt, f"torchvision {entry.name}", sha256)


def is_downloaded(name: str) -> bool:
    """Return whether the published weights are in torch.hub's cache folder."""
    file = Path(urlsplit(published_weights(name).url).path).name
    return (Path(torch.hub.get_dir()) / "checkpoints" / file).is_file()


def n_parameters(name: str) -> int:
    """Return the number of parameters, the ImageNet Linear among them, as torchvision states it."""
    return int(published_weights(name).meta["num_params"])


def _resampled(state: State, image_size_px: int, patch_px: int) -> State:
    """Interpolate a ViT's position embedding to the grid of this image size; others pass unchanged."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    positions = state.get("encoder.pos_embedding")
    if positions is None or positions.ndim != 3 or positions.shape[1] == (image_size_px // patch_px) ** 2 + 1:
        return state
    side = round((positions.shape[1] - 1) ** 0.5)
    if side * side != positions.shape[1] - 1:  # no square grid with a class token: load_state will say so
        return state
    return dict(interpolate_embeddings(image_size_px, patch_px, dict(state)))
