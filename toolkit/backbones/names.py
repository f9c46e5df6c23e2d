"""The names of the backbones, family by family, as plain data: reading them imports neither torchvision nor timm."""

from __future__ import annotations

EMBEDDED = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")

SMALL = ("resnet20",)  # for images of about 32 px, and never pretrained

TORCHVISION: dict[str, tuple[str, ...]] = {
    "ResNet": ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "ResNeXt": ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    "Wide ResNet": ("wide_resnet50_2", "wide_resnet101_2"),
    "VGG": ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
    "DenseNet": ("densenet121", "densenet161", "densenet169", "densenet201"),
    "MobileNetV2": ("mobilenet_v2",),
    "MobileNetV3": ("mobilenet_v3_small", "mobilenet_v3_large"),
    "EfficientNet": (
        "efficientnet_b0",
        "efficientnet_b1",
        "efficientnet_b2",
        "efficientnet_b3",
        "efficientnet_b4",
        "efficientnet_b5",
        "efficientnet_b6",
        "efficientnet_b7",
    ),
    "EfficientNetV2": ("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"),
    "ConvNeXt": ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    "RegNet": (
        "regnet_x_400mf",
        "regnet_x_800mf",
        "regnet_x_1_6gf",
        "regnet_x_3_2gf",
        "regnet_x_8gf",
        "regnet_x_16gf",
        "regnet_x_32gf",
        "regnet_y_400mf",
        "regnet_y_800mf",
        "regnet_y_1_6gf",
        "regnet_y_3_2gf",
        "regnet_y_8gf",
        "regnet_y_16gf",
        "regnet_y_32gf",
        "regnet_y_128gf",
    ),
    "ViT": ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"),
    "Swin": ("swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b"),
}

# timm's file → the class in it that can be cut into stages, and what its networks are called
TIMM: dict[str, tuple[str, str]] = {
    "resnet": ("ResNet", "ResNet, ResNeXt, SE and ECA ResNets"),
    "efficientnet": ("EfficientNet", "EfficientNet, MobileNetV1/V2, MNASNet, MixNet, TinyNet"),
    "mobilenetv3": ("MobileNetV3", "MobileNetV3/V4, LCNet, FBNetV3"),
    "convnext": ("ConvNeXt", "ConvNeXt V1/V2/Zepto"),
    "vision_transformer": ("VisionTransformer", "ViT, DeiT-like, CLIP, DINOv2, SigLIP, AugReg"),
}
TIMM_PREFIX = "timm/"

FAMILY_OF = {name: family for family, members in TORCHVISION.items() for name in members}

_N_STAGES = {
    "ResNet": 5,
    "ResNeXt": 5,
    "Wide ResNet": 5,
    "VGG": 6,
    "DenseNet": 5,
    "MobileNetV2": 8,
    "MobileNetV3": 7,
    "EfficientNet": 8,
    "EfficientNetV2": 8,
    "ConvNeXt": 5,
    "RegNet": 5,
    "ViT": 6,
    "Swin": 5,
}
_N_STAGES_OF = {"mobilenet_v3_small": 6, "efficientnet_v2_s": 7}


def n_stages(name: str) -> int:
    """Return the number of stages of an embedded, a torchvision or a small backbone."""
    if name in EMBEDDED:
        return 8
    if name in SMALL:
        return 4
    return _N_STAGES_OF.get(name, _N_STAGES[FAMILY_OF[name]])


def plain_names() -> tuple[str, ...]:
    """Return every name that is not timm's, the embedded ones first."""
    return EMBEDDED + tuple(FAMILY_OF) + SMALL
