"""Weights from files and downloads into networks; nothing that is loaded can run code."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from toolkit.backbones.parts import State
from toolkit.errors import WeightsError
from toolkit.storage import file_sha256

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # what training scripts put around a state dict
_PREFIXES = ("module.", "model.", "_orig_mod.")  # of DataParallel, of a Lightning module, of torch.compile
_N_NAMED = 3  # keys of each kind that an error names


def read_state(path: str | Path) -> State:
    """Return the tensors of a safetensors file or a torch state dict, on the CPU, wrappers and prefixes taken off.

    Raises WeightsError for a file that is missing, damaged, or would have to run code to be loaded.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise WeightsError(f"there is no weights file {str(file)!r}")
    try:
        content = _read(file)
    except Exception as error:  # the two readers raise a dozen types for damaged files
        if "weights only load failed" in str(error).lower() and "global" in str(error).lower():
            raise WeightsError(
                f"{file}: refused, it holds Python objects beside tensors, and loading those could run code; "
                "save the network's state_dict() alone, or as safetensors"
            ) from error
        reason = (str(error).splitlines() or [""])[0]
        told = "" if "weights_only" in reason or not reason else f": {reason}"  # torch advises to let the file run code
        raise WeightsError(
            f"{file}: damaged, or no checkpoint of tensors; safetensors or a torch state dict expected "
            f"({type(error).__name__}{told})"
        ) from error
    return _unwrap(content, file)


def load_state(model: nn.Module, state: Mapping[str, Tensor], classifier: nn.Linear | None, origin: str) -> bool:
    """Copy a state dict into a network; returns whether the classifier's weights were among it.

    A classifier that is missing, of another width or another name is let go; any other difference raises
    WeightsError, which names `origin` and the first keys that are missing, unexpected or of another shape.
    """
    expected = model.state_dict()
    head = next((name for name, module in model.named_modules() if module is classifier), None)
    head_keys = [key for key in expected if head is not None and key.startswith(f"{head}.")]
    has_head = all(key in state and state[key].shape == expected[key].shape for key in head_keys)
    given = {key: value for key, value in state.items() if has_head or key not in head_keys}
    fits = {key: value for key, value in given.items() if key not in expected or value.shape == expected[key].shape}
    wrong = [f"{key} {tuple(given[key].shape)} in place of {tuple(expected[key].shape)}" for key in given.keys() - fits]
    result = model.load_state_dict(fits, strict=False)  # not strict: networks rename the keys of their older versions

    tolerated = {*head_keys, *(key for key in expected if key.endswith("num_batches_tracked"))}
    missing = [key for key in result.missing_keys if key not in tolerated and key not in given]
    unexpected = [key for key in result.unexpected_keys if has_head or not key.startswith(f"{head}.")]
    if not has_head and classifier is not None and _is_one_linear(unexpected, state, classifier.in_features):
        unexpected = []
    problems = [
        f"{kind} {', '.join(keys[:_N_NAMED])}{f' … ({len(keys)} in all)' if len(keys) > _N_NAMED else ''}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", sorted(wrong)))
        if keys
    ]
    if problems:
        raise WeightsError(f"{origin} does not fit this backbone: {'; '.join(problems)}")
    return classifier is not None and has_head


def from_url(name: str, url: str) -> tuple[State, str]:
    """Return a published state dict, and the SHA-256 of its file, from torch.hub's cache or else from the network.

    Raises WeightsError when it can be had from neither, or when the file is not the one published.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    file = cache / Path(urlsplit(url).path).name
    try:
        with redirect_stdout(sys.stderr):  # where it says that it downloads
            state: State = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=sys.stderr.isatty(), check_hash=True, weights_only=True
            )
    except Exception as error:  # urllib, ssl, zipfile, pickle and torch each have their own
        if file.is_file():
            raise WeightsError(f"{file} cannot be read, it is damaged: delete it to download it again") from error
        raise unreachable(name, url, cache, error) from error
    sha256 = file_sha256(file)
    published = re.search(r"-([0-9a-f]{8,})\.", file.name)  # torch.hub checks this only while it downloads
    if published and not sha256.startswith(published[1]):
        raise WeightsError(f"{file} is not the published file (sha256 {sha256[:12]}…): delete it to download it again")
    return state, sha256


def unreachable(name: str, what: str, cache: Path, error: Exception) -> WeightsError:
    """Return the error for weights that are neither in the cache folder nor to be had from the network."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return WeightsError(
        f"{name}: its weights ({what}) are not in {cache} and could not be downloaded ({reason}); "
        "connect to the network once, or give a checkpoint file with --weights FILE"
    )


def state_sha256(modules: Iterable[nn.Module], description: str = "") -> str:
    """Return a SHA-256 over names, dtypes, shapes and values of all parameters and buffers."""
    sha = hashlib.sha256(description.encode())
    for index, module in enumerate(modules):
        for key, value in module.state_dict().items():
            sha.update(f"{index}.{key} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def _read(file: Path) -> Any:
    """Read a file by what it is, whatever its suffix says."""
    with file.open("rb") as opened:
        start = opened.read(9)
    if start[8:] == b"{":  # the length of the header in 8 bytes, then the header, JSON
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _unwrap(content: Any, file: Path) -> State:
    """Return the state dict inside a checkpoint, its keys without a prefix that they all share."""
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{file}: a state dict expected, found {type(content).__name__}")
    odd = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise WeightsError(f"{file}: a state dict of tensors expected, found {type(content[odd]).__name__} at {odd!r}")
    state = {str(key): value for key, value in content.items()}
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_one_linear(keys: list[str], state: Mapping[str, Tensor], in_features: int) -> bool:
    """Return whether these keys are one Linear from that width: a classifier under another name."""
    weight = next((key for key in keys if key.endswith("weight")), "")
    module = weight.removesuffix("weight")
    if not weight or not set(keys) <= {weight, f"{module}bias"}:
        return False
    return state[weight].ndim == 2 and state[weight].shape[1] == in_features
