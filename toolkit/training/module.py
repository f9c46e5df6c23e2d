"""TransferModule: a TransferNetwork as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.taps import tap_widths
from toolkit.data.decode import DEFAULT_MAX_PIXELS
from toolkit.errors import ArtifactError, SettingError, unknown_name
from toolkit.features.prefix import Activations
from toolkit.heads.linear import LinearHead
from toolkit.plan import FreezeSpec
from toolkit.training.groups import parameter_groups
from toolkit.training.network import TransferNetwork
from toolkit.training.schedule import warmup_cosine
from toolkit.training.trained import TrainedModel

OPTIMIZERS = ("adamw", "sgd")

Labelled = tuple[Tensor | Activations, Tensor]  # a batch


class TransferModule(LightningModule):
    """A pretrained backbone with a new head, trained from a cut with the notes' rates; for any `Trainer`.

    Batches are (inputs, labels): uint8 (N, 3, H, W), normalised here on the device, float that is normalised
    already, or the stored Activations of the frozen stages; labels int64 (N,). Logs train_loss, train_accuracy,
    val_loss, val_accuracy. The backbone's stages are taken over, not copied.

    cut: first trainable stage (by default the last two stages train); spec: a FreezeSpec instead of a cut.
    taps: stages whose pooled outputs the head sees (the last one by default). head: a module (N, D) → (N, n_classes),
    a LinearHead of zeros by default. lr: the head's rate; groups have it times
    their multiplier. warmup: share of the steps spent rising. class_weights: (C,) factors of the loss.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        *,
        cut: int | None = None,
        spec: FreezeSpec | None = None,
        taps: Sequence[int] | None = None,
        head: nn.Module | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        optimizer: str = "adamw",
        warmup: float = 0.1,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        update_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        if cut is not None and spec is not None:
            raise SettingError("give either cut or spec, not both")
        if not (0 < lr < math.inf and 0 <= weight_decay < math.inf and 0 <= warmup <= 1 and 0 <= label_smoothing < 1):
            raise SettingError(
                "lr > 0, weight_decay >= 0, warmup from 0 to 1 and label_smoothing from 0 to below 1 expected, "
                f"got {lr}, {weight_decay}, {warmup} and {label_smoothing}"
            )
        if class_weights is not None and len(class_weights) != n_classes:
            raise SettingError(f"class_weights: {n_classes} of them expected, one a class; got {len(class_weights)}")
        if optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", optimizer, OPTIMIZERS)
        if spec is None:
            spec = FreezeSpec.at_cut(len(backbone), max(0, len(backbone) - 2) if cut is None else cut)
        self.backbone = backbone
        self.network = TransferNetwork(
            backbone,
            head or LinearHead(tap_widths(backbone, taps), n_classes),
            spec,
            taps=taps,
            update_batchnorm=update_batchnorm,
        )
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.warmup = warmup
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, inputs: Tensor | Activations) -> Tensor:
        """Return class scores, float (N, C)."""
        scores: Tensor = self.network(inputs)
        return scores

    def on_fit_start(self) -> None:
        """Set training mode: the network begins in eval mode, and the Trainer leaves modes as it finds them."""
        self.train()
        self.network.renew_prefix()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another network; raises ArtifactError."""
        ours, stored = self.state_dict(), checkpoint["state_dict"]
        odd = [key for key in {**ours, **stored} if _shape(ours, key) != _shape(stored, key)]
        if odd:
            raise ArtifactError(
                f"the checkpoint is of another network ({odd[0]}: {_shape(stored, odd[0])} in the checkpoint, "
                f"{_shape(ours, odd[0])} here); did classes or settings change since? Start a new run"
            )

    def training_step(self, batch: Labelled, batch_idx: int) -> dict[str, Tensor]:
        """Return a batch's loss, its sum over images, hits and size.

        A batch of one image is normalised by running statistics: it has no variance of its own.
        """
        inputs, labels = batch
        if len(labels) == 0:  # every file of the batch failed; all ranks must still meet in backward
            nothing = torch.stack([p.sum() for p in self.network.parameters() if p.requires_grad]).sum() * 0
            return {"loss": nothing, "loss_sum": nothing.detach(), "hits": nothing.detach(), "size": nothing.detach()}
        if len(labels) == 1:
            with self.network.fixed_statistics():
                scores = self.network(inputs)
        else:
            scores = self.network(inputs)
        loss = F.cross_entropy(scores.float(), labels, weight=self.class_weights, label_smoothing=self.label_smoothing)
        hits = (scores.argmax(dim=1) == labels).sum()
        size = torch.tensor(float(len(labels)))
        self._log("train", loss, hits, size)
        return {"loss": loss, "loss_sum": loss.detach() * size, "hits": hits, "size": size}

    def validation_step(self, batch: Labelled, batch_idx: int) -> None:
        """Log the plain cross-entropy and the accuracy of a batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: Labelled, batch_idx: int) -> None:
        """Log the plain cross-entropy and the accuracy of a batch of the test split."""
        self._evaluate("test", batch)

    def trained_model(self, classes: Sequence[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> TrainedModel:
        """Return what `save_model` saves; classes: names in the order of the labels."""
        return TrainedModel.of(self.network, self.backbone, tuple(classes), max_pixels)

    def configure_optimizers(self) -> Any:
        """Return the optimizer over all groups and the warm-up-and-cosine schedule by steps."""
        groups = parameter_groups(self.network, lr=self.lr, weight_decay=self.weight_decay)
        optimizer: torch.optim.Optimizer
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=self.lr)
        total = int(self.trainer.estimated_stepping_batches)
        factor = partial(warmup_cosine, total_steps=total, warmup_steps=round(total * self.warmup))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _evaluate(self, split: str, batch: Labelled) -> None:
        inputs, labels = batch
        if len(labels):
            scores = self.network(inputs)
            hits = (scores.argmax(dim=1) == labels).sum()
            self._log(split, F.cross_entropy(scores.float(), labels), hits, torch.tensor(float(len(labels))))

    def _log(self, split: str, loss: Tensor, hits: Tensor, size: Tensor) -> None:
        values = {f"{split}_loss": loss.detach(), f"{split}_accuracy": hits / size}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=int(size), sync_dist=True)


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None
