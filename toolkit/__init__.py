"""A toolkit that turns a folder of labelled photos into a good classifier.

The verbs are functions, and load what they need when they are called; see the README.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.artifacts.model_folder import load_model, save_model
    from toolkit.backbones.backbone import Backbone
    from toolkit.backbones.catalog import as_backbone, build_backbone
    from toolkit.data.datamodule import ImageFolderData
    from toolkit.data.preprocessing import Preprocessing
    from toolkit.errors import ToolkitError
    from toolkit.plan import FreezeSpec, Recipe, StageRule, TransferPlan
    from toolkit.tasks.baseline import train_baseline
    from toolkit.tasks.cache import cache
    from toolkit.tasks.check import check
    from toolkit.tasks.classifier import ImageClassifier
    from toolkit.tasks.compare import compare
    from toolkit.tasks.evaluate import evaluate
    from toolkit.tasks.extractor import FeatureExtractor
    from toolkit.tasks.features import extract_features
    from toolkit.tasks.finetune import finetune
    from toolkit.tasks.notes import notes
    from toolkit.tasks.plan import plan_transfer
    from toolkit.tasks.predict import predict
    from toolkit.tasks.search import search
    from toolkit.training.module import TransferModule
    from toolkit.training.network import TransferNetwork

_HOMES = {
    "Backbone": "backbones.backbone",
    "FeatureExtractor": "tasks.extractor",
    "FreezeSpec": "plan",
    "ImageClassifier": "tasks.classifier",
    "ImageFolderData": "data.datamodule",
    "Preprocessing": "data.preprocessing",
    "Recipe": "plan",
    "StageRule": "plan",
    "ToolkitError": "errors",
    "TransferModule": "training.module",
    "TransferNetwork": "training.network",
    "TransferPlan": "plan",
    "as_backbone": "backbones.catalog",
    "build_backbone": "backbones.catalog",
    "cache": "tasks.cache",
    "check": "tasks.check",
    "compare": "tasks.compare",
    "evaluate": "tasks.evaluate",
    "extract_features": "tasks.features",
    "finetune": "tasks.finetune",
    "load_model": "artifacts.model_folder",
    "notes": "tasks.notes",
    "plan_transfer": "tasks.plan",
    "predict": "tasks.predict",
    "save_model": "artifacts.model_folder",
    "search": "tasks.search",
    "train_baseline": "tasks.baseline",
}

__all__ = [
    "Backbone",
    "FeatureExtractor",
    "FreezeSpec",
    "ImageClassifier",
    "ImageFolderData",
    "Preprocessing",
    "Recipe",
    "StageRule",
    "ToolkitError",
    "TransferModule",
    "TransferNetwork",
    "TransferPlan",
    "as_backbone",
    "build_backbone",
    "cache",
    "check",
    "compare",
    "evaluate",
    "extract_features",
    "finetune",
    "load_model",
    "notes",
    "plan_transfer",
    "predict",
    "save_model",
    "search",
    "train_baseline",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"toolkit.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'toolkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
