"""TransferModule: a TransferNetwork as a LightningModule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from toolkit.backbones.backbone import Backbone
from toolkit.backbones.taps import tap_widths
from toolkit.data.decode import DEFAULT_MAX_PIXELS
from toolkit.errors import SettingError
from toolkit.features.prefix import Activations
from toolkit.hardware import PRECISIONS, one_thread_where_forked
from toolkit.heads.linear import LinearHead
from toolkit.plan import FreezeSpec, Recipe, partial_cut
from toolkit.training.average import WeightAverage
from toolkit.training.blend import Blend, blend, taken
from toolkit.training.checkpoints import check_same_network
from toolkit.training.drop_path import set_drop_path
from toolkit.training.groups import parameter_groups
from toolkit.training.loss import loss_and_hits
from toolkit.training.network import TransferNetwork
from toolkit.training.pull import Pull
from toolkit.training.schedule import rate_factors
from toolkit.training.split_steps import SplitSteps
from toolkit.training.trained import TrainedModel
from toolkit.training.updates import GradientNorms, UpdateRatios

Labelled = tuple[Tensor | Activations, Tensor]  # a batch


class TransferModule(LightningModule):
    """A pretrained backbone with a new head, trained from a cut with the notes' rates; for any `Trainer`.

    Batches are (inputs, labels): uint8 (N, 3, H, W), normalised here on the device, float that is normalised
    already, or the stored Activations of the frozen stages; labels int64 (N,). Logs train_loss, train_accuracy,
    val_loss, val_accuracy. The backbone's stages are taken over, not copied. They stay float32: the Trainer's
    precision is 32-true, bf16-mixed or 16-mixed.

    cut: first trainable stage (by default that of `partial_cut`); spec: a FreezeSpec instead of a cut.
    taps: stages whose pooled outputs the head sees (the last one by default). head: a module (N, D) → (N, n_classes),
    a LinearHead of zeros by default. recipe: how it learns; its batch_size is the data's affair. class_weights: (C,)
    factors of the loss.
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
        recipe: Recipe | None = None,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if cut is not None and spec is not None:
            raise SettingError("give either cut or spec, not both")
        if class_weights is not None and len(class_weights) != n_classes:
            raise SettingError(f"class_weights: {n_classes} of them expected, one a class; got {len(class_weights)}")
        if spec is None:
            cut = partial_cut(backbone.stage_sizes()) if cut is None else cut
            spec = FreezeSpec.at_cut(len(backbone), cut)
        self.recipe = recipe or Recipe()
        self.backbone = backbone
        self.network = TransferNetwork(
            backbone,
            head or LinearHead(tap_widths(backbone, taps), n_classes),
            spec,
            taps=taps,
            batchnorm=self.recipe.batchnorm,
        )
        trained = backbone.stages[spec.cut :]
        if self.recipe.drop_path is not None and not set_drop_path(trained, self.recipe.drop_path):
            raise SettingError(f"drop_path: no stage of {backbone.name} that trains has blocks that can be skipped")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.updates = UpdateRatios()
        self.gradients = GradientNorms()
        self._steps = SplitSteps(())
        self.accuracies = nn.ModuleDict(
            {f"{split}_accuracy": MulticlassAccuracy(max(2, n_classes), average="micro") for split in ("val", "test")}
        )
        self._average: WeightAverage | None = None
        self._pull: Pull | None = None
        self._loaded: dict[str, Any] = {}

    def forward(self, inputs: Tensor | Activations) -> Tensor:
        """Return class scores, float (N, C)."""
        scores: Tensor = self.network(inputs)
        return scores

    def setup(self, stage: str) -> None:
        """Note the weights that training begins with, before a checkpoint brings later ones.

        Raises SettingError for a precision that would turn the frozen weights into another number format.
        """
        one_thread_where_forked()
        if (given := self.trainer.precision) not in PRECISIONS:
            instead = {"bf16-true": "bf16-mixed", "16-true": "16-mixed"}.get(given, "32-true")
            what = "would change the number format of all weights, the frozen ones too"
            raise SettingError(f"precision: {given!r} {what}; give the Trainer {instead!r}")
        if stage == "fit" and self.recipe.decay_towards == "start":
            self._pull = Pull(self.network, self.recipe.weight_decay)

    def on_fit_start(self) -> None:
        """Set training mode: the network begins in eval mode, and the Trainer leaves modes as it finds them."""
        self.train()
        self.network.renew_prefix()
        if self._pull is not None:
            self._pull.follow()
        if self.recipe.ema:
            learning = [p for p in self.network.parameters() if p.requires_grad]
            self._average = WeightAverage(learning, self.recipe.ema)
            if "average" in self._loaded:
                self._average.load_state_dict(self._loaded["average"])
        self.updates = UpdateRatios(self._loaded.get("updates"))
        self.gradients = GradientNorms(self._loaded.get("gradients"))
        self._steps = SplitSteps(self.network.parameters(), self._loaded.get("at_once"))

    def on_train_start(self) -> None:
        """Go on with a step in work; not sooner, for the Trainer forgets gradients before."""
        if self._loaded.get("in_work") is not None:
            self._steps.go_on(self._loaded["in_work"])
        self._loaded = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is neither weight nor the optimizer's: also what a step in work has come to, in mid-accumulation."""
        checkpoint["learning"] = {"updates": self.updates.state_dict(), "gradients": self.gradients.state_dict()}
        checkpoint["learning"] |= {"at_once": self._steps.at_once, "in_work": self._gradients_in_work()}
        if self._average is not None:
            checkpoint["learning"]["average"] = self._average.state_dict()
            self._average.put_into(checkpoint["state_dict"], self)

    def _gradients_in_work(self) -> list[Tensor | None] | None:
        """Return the gradients of the step in work; those of several ranks, which each go on with it, are averaged."""
        found = self._steps.gradients()
        if found is None or self.trainer.world_size == 1:
            return found
        return [None if one is None else self.trainer.strategy.reduce(one.clone(), reduce_op="mean") for one in found]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another network; raises ArtifactError."""
        check_same_network(self.state_dict(), checkpoint["state_dict"])
        self._loaded = dict(checkpoint.get("learning", {}))

    def on_validation_start(self) -> None:
        """Show the average of the weights, also where a step is in work."""
        if self._average is not None:
            self._average.show()

    def on_train_end(self) -> None:
        """Leave the average of the weights, also where training ended in mid-accumulation."""
        self.on_validation_start()

    def training_step(self, batch: Labelled, batch_idx: int) -> dict[str, Tensor]:
        """Return a batch's loss, its sum over images, hits and size.

        A batch of one image is normalised by running statistics: it has no variance of its own.
        """
        inputs, labels = batch[:2]
        if len(labels) == 0:  # every file of the batch failed; all ranks must still meet in backward
            nothing = torch.stack([p.sum() for p in self.network.parameters() if p.requires_grad]).sum() * 0
            return {"loss": nothing, "loss_sum": nothing.detach(), "hits": nothing.detach(), "size": nothing.detach()}
        if self._average is not None:
            self._average.learn()
        whole = self._blended(inputs, labels)
        if self._trainer is not None and self._trainer.world_size > 1:  # ranks must go backward alike, and DDP averages
            loss, hits = self._learn(whole, labels, slice(None))  # what has been added up: nothing is set aside
        else:
            loss, hits = self._steps.forward(
                len(labels),
                lambda part: self._learn(whole, labels, part),
                self._add_gradients,
                begins=batch_idx % self._accumulated() == 0,
            )
        size = torch.tensor(float(len(labels)))
        values = {"train_loss": loss.detach(), "train_accuracy": hits / size}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        return {"loss": loss, "loss_sum": loss.detach() * size, "hits": hits, "size": size}

    def _learn(self, whole: Blend, labels: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        smoothing = self.recipe.label_smoothing
        return loss_and_hits(self.network, whole, labels, part, smoothing=smoothing, weights=self.class_weights)

    def _add_gradients(self, loss: Tensor) -> None:
        """Go backward from a part of a batch as the Trainer does from a whole one."""
        self.trainer.strategy.backward(loss / self._accumulated(), None)

    def _accumulated(self) -> int:
        """Return how many batches make a step; one where nobody trains it."""
        return 1 if self._trainer is None else self._trainer.accumulate_grad_batches

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add the gradients of a loss to the parameters', in parts where memory runs out."""
        plain = partial(super().backward, loss, *args, **kwargs)
        self._steps.backward(loss, plain, self._add_gradients)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Forget the gradients of the last step, unless those of this one are there already."""
        if not self._steps.has_gradients:
            optimizer.zero_grad()

    def batch_loss(self, inputs: Tensor | Activations, labels: Tensor) -> Tensor:
        """Return the loss of a batch as a step of training has it, blends and all."""
        return self._learn(self._blended(inputs, labels), labels, slice(None))[0]

    def _blended(self, inputs: Tensor | Activations, labels: Tensor) -> Blend:
        mixup, cutmix = self.recipe.mixup, self.recipe.cutmix
        if not (mixup or cutmix):
            return Blend(inputs, labels, 1.0)
        return blend(self.network.before_tail(inputs), self.backbone.layout, mixup=mixup, cutmix=cutmix)

    def validation_step(self, batch: Labelled, batch_idx: int) -> None:
        """Log the plain cross-entropy and the accuracy of a batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: Labelled, batch_idx: int) -> None:
        """Log the plain cross-entropy and the accuracy of a batch of the test split."""
        self._evaluate("test", batch)

    def trained_model(self, classes: Sequence[str], *, max_pixels: int = DEFAULT_MAX_PIXELS) -> TrainedModel:
        """Return what `save_model` saves; classes: names in the order of the labels."""
        return TrainedModel.of(self.network, self.backbone, tuple(classes), max_pixels)

    def make_optimizer(self, *, fused: bool = True) -> torch.optim.Optimizer:
        """Return the recipe's optimizer over all groups, at their full rates.

        fused: whether AdamW may do all parameters in one pass, which is exact on a CPU alone.
        """
        recipe = self.recipe
        pulled = recipe.decay_towards == "start"  # then the decay is ours: see optimizer_step
        groups = parameter_groups(self.network, replace(recipe, weight_decay=0.0) if pulled else recipe)
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=True if fused and self.device.type == "cpu" else None)

    def configure_optimizers(self) -> Any:
        """Return the optimizer over all groups and the warm-up-and-cosine schedule by steps; where nobody knows how
        many there will be (data without a length, an end by the clock), rates stay as they are."""
        recipe = self.recipe
        # Lightning clips no gradients of a fused optimizer in mixed precision
        optimizer = self.make_optimizer(fused=self.trainer.precision == "32-true")
        groups = optimizer.param_groups
        total = float(self.trainer.estimated_stepping_batches)
        total = total if total >= 1 else math.inf  # data without a length
        an_epoch = float(self.trainer.num_training_batches)
        if math.isfinite(an_epoch):
            an_epoch = math.ceil(an_epoch / self._accumulated())
        elif recipe.unfreeze:
            raise SettingError("unfreeze counts epochs: the data must have a length")
        if recipe.batchnorm == "moving":
            self.network.set_momentum(an_epoch)
        factors = rate_factors(recipe, [group["depth"] for group in groups], total, an_epoch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Take a step; then pull the weights to where they began, and let their average follow, if the recipe says."""
        groups = optimizer.param_groups
        if self._average is not None:
            self._average.learn()
        with self.updates.watching(groups, self.trainer):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            if self._pull is not None:
                self._pull.after_step(groups)
        self._steps.unspent = False
        if self._average is not None:
            self._average.rest()

    def _evaluate(self, split: str, batch: Labelled) -> None:
        inputs, labels = batch[:2]
        known = labels >= 0
        if not known.all():  # a flat test folder has no labels to score by
            inputs, labels = taken(inputs, known), labels[known]
        if len(labels):
            scores = self.network(inputs)
            accuracy = self.accuracies[f"{split}_accuracy"]
            assert isinstance(accuracy, Metric)
            accuracy.update(scores, labels)
            self.log(f"{split}_accuracy", accuracy, on_step=False, on_epoch=True)
            loss = F.cross_entropy(scores.float(), labels)
            self.log(f"{split}_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
