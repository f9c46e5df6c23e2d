"""BaselineModule: a net on rows of numbers as a LightningModule, for every baseline that is trained by gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from toolkit.baselines.net import BATCH_NORMS, CentredNet
from toolkit.errors import ArtifactError, SettingError, unknown_name
from toolkit.heads.threads import one_thread
from toolkit.reference import losses, schedules
from toolkit.reference.regularizers import soft_threshold
from toolkit.training.finite import NotFinite, check_finite
from toolkit.training.updates import GradientNorms, gradient_norm

ALONE_UP_TO = 1 << 25  # multiplications of a forward pass that one thread does
LOSSES = ("cross_entropy", "hinge")
OPTIMIZERS = ("adam", "sgd", "momentum", "nesterov", "adagrad", "rmsprop")
SCHEDULES = ("constant", "step", "exponential", "inverse", "cosine")

MOMENTUM = 0.9
STEP_FACTOR = 0.1  # after each third of the steps
LAST_SHARE = 0.01  # of the rate, at the last step of "exponential"
LAST_INVERSE = 0.1  # the same for "inverse"


class BaselineModule(LightningModule):
    """Trains a CentredNet on (rows or pixels, labels); for any `Trainer` on one device.

    A batch that the loader hands over is a unit of several optimizer steps, of `batch_size` images each: Lightning does
    about a millisecond of its own work around every batch, as much as a step of a small net takes. What a Trainer
    counts, global_step, are optimizer steps.

    loss: cross_entropy, or hinge (the multiclass SVM, margin 1). l2: λ of λ Σ w², whose gradient every step adds; l1:
    of λ Σ |w|, a proximal step after each (soft thresholding by lr · λ), which makes weights exactly 0. Both on weight
    matrices alone. schedule: by optimizer steps, over `total_steps`: constant; step (× 0.1 after each third);
    exponential (to 0.01); inverse (1/t, to 0.1); cosine (to 0). Logs val_loss and val_accuracy.
    """

    def __init__(
        self,
        network: CentredNet,
        *,
        total_steps: int,
        batch_size: int = 256,
        loss: str = "cross_entropy",
        optimizer: str = "adam",
        lr: float = 1e-3,
        schedule: str = "constant",
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        for kind, name, known in (
            ("loss", loss, LOSSES),
            ("optimizer", optimizer, OPTIMIZERS),
            ("schedule", schedule, SCHEDULES),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        if not (0 < lr < math.inf and 0 <= l1 < math.inf and 0 <= l2 < math.inf and batch_size > 0 and total_steps > 0):
            raise SettingError(
                "lr > 0, l1 >= 0, l2 >= 0, batch_size >= 1 and total_steps >= 1 expected, "
                f"got {lr}, {l1}, {l2}, {batch_size} and {total_steps}"
            )
        self.automatic_optimization = False
        self.network = network
        self.total_steps = total_steps
        self.batch_size = batch_size
        self.loss = loss
        self.optimizer = optimizer
        self.lr = lr
        self.schedule = schedule
        self.l1 = l1
        self.l2 = l2
        self.gradients = GradientNorms()

    def forward(self, rows: Tensor) -> Tensor:
        """Return class scores, float (N, C)."""
        scores: Tensor = self.network(rows.flatten(1))
        return scores

    def on_fit_start(self) -> None:
        """Set training mode: the Trainer leaves modes as it finds them."""
        self.train()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another net; raises ArtifactError."""
        ours, stored = self.state_dict(), checkpoint["state_dict"]
        if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in stored.items()}:
            raise ArtifactError("the checkpoint is of another net; did classes or settings change? Start a new run")
        self.gradients = GradientNorms(checkpoint.get("learning", {}).get("gradients"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the norms of the gradients since the last row of the history."""
        checkpoint["learning"] = {"gradients": self.gradients.state_dict()}

    def training_step(self, unit: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Take the unit's optimizer steps; return the sum of the data losses over images, hits and size."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        done = self.trainer.global_step
        sums, scored = [], []
        inputs, labels = unit
        for first in range(0, len(labels), self.batch_size):
            images = slice(first, first + self.batch_size)
            try:
                loss, scores = self.step(optimizer, done, inputs[images], labels[images])
            except NotFinite as found:
                raise NotFinite(found.what, found.value, done + 1, images) from None
            sums.append(loss * len(scores))
            scored.append(scores)
            done += 1
        total = torch.stack(sums).sum()
        # The Trainer counts steps of its own wrapper of the optimizer, which costs as much as the step.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for _ in sums:
            progress.increment_ready()
            progress.increment_completed()
        hits = (torch.cat(scored).argmax(dim=1) == labels).sum()
        return {"loss_sum": total, "hits": hits, "size": torch.tensor(float(len(labels)))}

    def step(
        self, optimizer: torch.optim.Optimizer, number: int, rows: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take optimizer step `number` (from 0) on some images; return the mean data loss and the scores before it.

        Raises NotFinite, before anything has changed, where the loss or a gradient is no number. A single image is
        normalised by running statistics: it has no variance of its own.
        """
        rate = self.lr * factor(self.schedule, number, self.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        with self._fixed_statistics(len(rows) == 1):
            scores = self.forward(rows)
        loss = self.data_loss(scores, labels)
        check_finite("loss", float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = gradient_norm(self.network.parameters())
        check_finite("gradient", norm)
        self.gradients.note(norm)
        optimizer.step()
        if self.l1:
            with torch.no_grad():
                for weight in weights_of(self.network):
                    weight.copy_(soft_threshold(weight, rate * self.l1))
        return loss.detach(), scores.detach()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the data loss and the accuracy of a batch."""
        inputs, labels = batch
        scores = self.forward(inputs)
        accuracy = (scores.argmax(dim=1) == labels).double().mean()
        values = {"val_loss": self.data_loss(scores, labels), "val_accuracy": accuracy}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(labels))

    def data_loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss; hinge is the notes' sum over the wrong classes, C times torch's mean over all.

        It comes from where the layers come from.
        """
        if self.network.spec.layers == "reference":
            return losses.hinge(scores, labels) if self.loss == "hinge" else losses.cross_entropy(scores, labels)
        if self.loss == "hinge":
            return F.multi_margin_loss(scores, labels) * scores.shape[1]
        return F.cross_entropy(scores, labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer; the gradient of λ Σ w² is 2 λ w, which torch calls a weight decay of 2 λ."""
        if not self.l2:  # one group, one call of the fused step
            return make_optimizer(self.optimizer, [{"params": list(self.network.parameters())}], self.lr)
        weights = weights_of(self.network)
        known = {id(weight) for weight in weights}
        others = [p for p in self.network.parameters() if id(p) not in known]
        groups = [{"params": weights, "weight_decay": 2 * self.l2}, {"params": others, "weight_decay": 0.0}]
        return make_optimizer(self.optimizer, groups, self.lr)

    @contextmanager
    def _fixed_statistics(self, fixed: bool) -> Iterator[None]:
        norms = [m for m in self.network.modules() if isinstance(m, BATCH_NORMS) and m.training] if fixed else []
        for norm in norms:
            norm.eval()
        try:
            yield
        finally:
            for norm in norms:
                norm.train()


def threads_for(network: nn.Module, batch_size: int) -> AbstractContextManager[Any]:
    """Keep the training of a small net on one thread.

    A second one gains little at steps of less than a millisecond, and on busy cores each waits for the other. Nor do
    the last bits of the sums then depend on the number of cores. A net of 256-128-100 on 784 pixels in batches of 256
    (63 million multiplications) takes 0.7 of the time with two threads on idle cores.
    """
    products = batch_size * sum(p.numel() for p in weights_of(network))
    return one_thread() if products <= ALONE_UP_TO else nullcontext()


def weights_of(network: nn.Module) -> list[nn.Parameter]:
    """Return the weight matrices; biases and the scales of batchnorm are not regularised."""
    return [p for p in network.parameters() if p.ndim == 2]


class _Adam(torch.optim.Adam):
    """torch's Adam without a check that matters for CUDA graphs alone.

    Before every step torch asks whether there is a GPU; a build for CUDA looks for the driver's library on the disk
    each time, a quarter of a millisecond where a step of a small net takes two.
    """

    def _accelerator_graph_capture_health_check(self) -> None:
        pass


def make_optimizer(name: str, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """Return torch's optimizer by name; fused, one pass over all parameters, where torch has it."""
    if name == "adam":
        return _Adam(groups, lr=lr, fused=True)
    if name == "adagrad":
        return torch.optim.Adagrad(groups, lr=lr)
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=lr)
    momentum = 0.0 if name == "sgd" else MOMENTUM
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=name == "nesterov", fused=True)


def factor(schedule: str, step: int, total_steps: int) -> float:
    """Return the factor on the rate at a step, from 0: a closed form of its number, so a resumed run finds it again."""
    last = max(1, total_steps - 1)
    if schedule == "step":
        return schedules.step_decay(step, every=max(1, math.ceil(total_steps / 3)), factor=STEP_FACTOR)
    if schedule == "exponential":
        return schedules.exponential_decay(step, rate=-math.log(LAST_SHARE) / last)
    if schedule == "inverse":
        return schedules.one_over_t(step, rate=(1 / LAST_INVERSE - 1) / last)
    if schedule == "cosine":
        return schedules.cosine(step, total_steps)
    return schedules.constant(step)
