"""timm's networks by name: which can be cut into stages, building, and weights from the Hugging Face hub."""

from __future__ import annotations

import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from toolkit.backbones.names import TIMM, TIMM_PREFIX
from toolkit.backbones.parts import Network, State, check_image_size
from toolkit.backbones.timm_families import SPLIT
from toolkit.backbones.weights import from_url, read_state, unreachable
from toolkit.data.preprocessing import Preprocessing
from toolkit.errors import SettingError, WeightsError, unknown_name
from toolkit.storage import file_sha256

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def family(name: str) -> str:
    """Return the file of timm's that `timm/NAME` is defined in; raises SettingError for names outside our families."""
    import timm

    plain = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(plain):
        known = [f"{TIMM_PREFIX}{other}" for module in TIMM for other in timm.list_models(module=module)]
        raise unknown_name("backbone", name, known)
    found = next((module for module in TIMM if timm.models.is_model_in_modules(plain, [module])), None)
    if found is None:
        raise _unsupported(name)
    tags = timm.list_models(f"{plain.partition('.')[0]}.*", pretrained=True)
    if "." in plain and plain not in tags:
        raise unknown_name("backbone", name, [f"{TIMM_PREFIX}{tag}" for tag in tags])
    return found


def preprocessing(name: str) -> Preprocessing:
    """Return what timm states of the weights; its `crop_pct` is the ratio of the crop to the resized image.

    A few networks were evaluated on squashed images; here they get the middle crop like all others.
    """
    family(name)
    cfg = _published_cfg(name)
    crop_px = int(cfg.input_size[1])
    return Preprocessing(int(crop_px / cfg.crop_pct), crop_px, cfg.interpolation, tuple(cfg.mean), tuple(cfg.std))


def network(name: str, image_size_px: int | None, published: bool) -> Network:
    """Build the network, with the weights of its tag in it when `published`.

    A ViT is built at the image size, a multiple of its patch size, and timm resamples the position embedding.
    """
    import timm

    module = family(name)
    plain = name.removeprefix(TIMM_PREFIX)
    check_image_size(name, image_size_px)
    options: dict[str, Any] = {}
    if module == "vision_transformer" and image_size_px is not None:
        options["img_size"] = image_size_px
    label, digest = "random", ""
    if published:
        state, label, digest = _published_state(name)
        # timm puts the state dict in itself: it knows which of its weights have an extra class or an older spelling
        options["pretrained_cfg_overlay"] = {"state_dict": state, "custom_load": False}
    try:
        model: Any = timm.create_model(plain, pretrained=published, **options)
    except RuntimeError as error:  # load_state_dict's
        if not published:
            raise
        raise WeightsError(f"{name}: its published weights do not fit it ({str(error).splitlines()[0]})") from error
    if type(model).__name__ != TIMM[module][0]:
        raise _unsupported(name)
    if module == "vision_transformer":
        check_image_size(name, image_size_px, int(model.patch_embed.patch_size[0]))
    return Network(model, SPLIT[module], preprocessing(name), _adapt(model), label, digest)


def is_downloaded(module: str) -> bool:
    """Return whether any weights of a family are in the Hugging Face cache folder."""
    import timm
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = Path(HF_HUB_CACHE).glob("models--timm--*")
    return any(timm.models.is_model_in_modules(folder.name.split("--")[-1], [module]) for folder in folders)


def _published_cfg(name: str) -> Any:
    """Return timm's description of the weights of a name."""
    import timm

    plain = name.removeprefix(TIMM_PREFIX)
    return timm.get_pretrained_cfg(plain) or timm.models.PretrainedCfg()


def _adapt(model: nn.Module) -> Callable[[State], State]:
    """Return timm's own filter for the state dicts of a family (older spellings, other image sizes), if it has one."""
    own_filter = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)

    def adapt(state: State) -> State:
        return state if own_filter is None else dict(own_filter(state, model))

    return adapt


def _published_state(name: str) -> tuple[State, str, str]:
    """Return the state dict of a name's published weights, their label, and the SHA-256 of their file."""
    cfg = _published_cfg(name)
    label = f"timm {cfg.tag or cfg.architecture or name}"
    if cfg.hf_hub_id:
        file = _hub_file(name, cfg.hf_hub_id)
        return read_state(file), label, file_sha256(file)
    if cfg.url:
        state, sha256 = from_url(name, cfg.url)
        return state, label, sha256
    raise WeightsError(f"{name}: no weights were published for it; give a checkpoint file with --weights FILE")


def _hub_file(name: str, repository: str) -> Path:
    """Return a repository's weights file from the Hugging Face cache, or else download it, once.

    The cache is asked first and without the network: the hub's own function looks for a newer version each time.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for filename in _HUB_FILES:
        cached = try_to_load_from_cache(repository, filename)
        if isinstance(cached, str):
            return Path(cached)
    try:
        host = urlsplit(constants.ENDPOINT).hostname
        if not urllib.request.getproxies():
            socket.getaddrinfo(host, 443)  # fails at once without a network; the hub's client retries for 47 s
        for filename in _HUB_FILES:
            try:
                return Path(hf_hub_download(repository, filename))
            except LocalEntryNotFoundError:  # not reachable
                raise
            except EntryNotFoundError:  # this repository has the other file
                continue
    except Exception as error:  # the client's own errors, httpx's, OSError
        raise unreachable(name, repository, Path(constants.HF_HUB_CACHE), error) from error
    raise WeightsError(f"{name}: {repository} has none of {', '.join(_HUB_FILES)}; give a file with --weights FILE")


def _unsupported(name: str) -> SettingError:
    """Return the error for a network of timm's that has no rule for its stages."""
    rules = "; ".join(f"{title} ({module}.py)" for module, (_, title) in TIMM.items())
    return SettingError(f"{name!r} cannot be cut into stages; of timm's networks these families can: {rules}")
