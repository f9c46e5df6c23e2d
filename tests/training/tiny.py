"""A backbone of four small stages, and what the tests of training share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from tests.photos import make_photos
from toolkit.backbones.backbone import Backbone
from toolkit.backbones.catalog import as_backbone
from toolkit.data.datamodule import ImageFolderData
from toolkit.data.preprocessing import Preprocessing
from toolkit.training.module import TransferModule

SMALL = Preprocessing(36, 32)
WIDTHS = (8, 12, 16, 16)


def tiny_backbone(seed: int = 0, dropout: float = 0.2) -> Backbone:
    """Return four stages of conv, BatchNorm (with statistics of its own), ReLU and dropout, the same for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages = []
        for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
            norm = nn.BatchNorm2d(after)
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.8, 1.2)
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            stages.append(nn.Sequential(conv, norm, nn.ReLU(), nn.Dropout(dropout)))
        return as_backbone(stages, preprocessing=SMALL)


def folder_data(root: Path, counts: dict[str, int] | None = None, **settings: Any) -> ImageFolderData:
    """Return data of three classes of generated photographs below `root`, made at the first call."""
    counts = counts or {"cat": 9, "dog": 8, "owl": 10}
    photos = root if root.exists() else make_photos(root, counts)
    return ImageFolderData(photos, SMALL, **{"batch_size": 4, "views": 3, **settings})


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in state.items()}


def prefix_state(module: TransferModule) -> dict[str, Tensor]:
    """Return copies of the parameters and buffers of the frozen stages."""
    network = module.network
    return copied(network.stages[: network.spec.cut].state_dict())


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different, different


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {key for key in one if not torch.equal(one[key], other[key])}


def bare_trainer(folder: Path, **settings: Any) -> pl.Trainer:
    """Return a Trainer as a user would make it, off the terminal."""
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 2,
            "default_root_dir": folder,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **settings,
        }
    )
