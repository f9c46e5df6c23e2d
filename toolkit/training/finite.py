"""A loss or a gradient that is no number ends a run before it reaches the weights, and the images are named."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from toolkit.data.datamodule import ManifestData
from toolkit.errors import ToolkitError
from toolkit.features.prefix import Activations
from toolkit.storage import publish_text
from toolkit.training.blend import taken
from toolkit.training.updates import GradientNorms, gradient_norm

BAD_BATCH = "bad_batch.csv"
NAMED = 4  # files in the line; the CSV has all
SMALLER = 0.1  # of the rate, to try instead


class NotFinite(ToolkitError):  # what was found, before the images were looked at
    """A value that is no number. what: "loss" or "gradient". step: the optimizer step it would have been part of, from
    1; None where the Trainer knows. images: which of the batch; None for all of its step."""

    def __init__(self, what: str, value: float, step: int | None = None, images: slice | None = None) -> None:
        where = "" if step is None else f" in step {step}"
        super().__init__(f"the {what} was {value}{where}, which was not taken; take a smaller rate")
        self.what, self.value, self.step, self.images = what, value, step, images


class NonFiniteError(ToolkitError):
    """Training came to a loss or gradient that is no number; the weights are those before it.

    by_image: whether single images are the cause, which no rate mends.
    """

    def __init__(self, text: str, *, by_image: bool) -> None:
        super().__init__(text)
        self.by_image = by_image


def check_finite(what: str, value: float) -> None:
    """Raise NotFinite for a value that is no number."""
    if not math.isfinite(value):
        raise NotFinite(what, value)


class FiniteGuard(Callback):
    """Raises NotFinite before a step whose loss or gradient is no number, and notes the gradient's norm.

    Gradients of "16-mixed" may overflow: its scaler leaves out such steps by design, and so they pass here.

    data: knows the rows of a batch. folder: where `bad_batch.csv` is written.
    """

    def __init__(self, data: ManifestData, folder: Path) -> None:
        self.data = data
        self.folder = folder
        self.error: NonFiniteError | None = None
        self._batch: Any = None
        self._rows: list[Tensor] = []  # of the step's batches so far

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note whose images these are."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._rows.clear()
        self._rows.append(self.data.rows_in_work())
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at the loss."""
        check_finite("loss", float(loss.detach()))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Look at the gradient, not clipped yet."""
        norm = gradient_norm(p for group in optimizer.param_groups for p in group["params"])
        if trainer.precision != "16-mixed":
            check_finite("gradient", norm)
        if isinstance(watch := getattr(pl_module, "gradients", None), GradientNorms):
            watch.note(norm)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Find out what to say, while module and batch are where they were."""
        if isinstance(exception, NotFinite):
            self.error = self._explained(exception, trainer, pl_module)

    def _explained(self, found: NotFinite, trainer: Trainer, module: LightningModule) -> NonFiniteError:
        """Return what to say of it: the step, the images, whether one of them is the cause or the rate, what to do.

        The images are looked at one by one: an input that is no number, or scores that are none, by the weights as they
        are and with fixed statistics. (Where norms move with the batch, the statistics that it has spoilt make that
        impossible; then the inputs alone tell.)
        """
        step = trainer.global_step + 1 if found.step is None else found.step
        rows = torch.cat(self._rows) if self._rows else torch.empty(0, dtype=torch.int64)
        inputs, _ = self._batch
        part = found.images or slice(None)
        if found.images is not None:
            rows = rows[part]
        odd = odd_images(module, taken(inputs, part))
        last = rows[len(rows) - len(odd) :]  # the batch whose images were looked at, of several that make a step
        guilty = last[odd.cpu()].tolist() if len(last) == len(odd) else []
        self._write(rows.tolist(), guilty)
        of = f"{len(rows)} image{'s'[: len(rows) != 1]}"
        start = f"the {found.what} was {found.value} in step {step}, which was not taken"
        if guilty:
            one = f"{self._names(guilty)} alone give{'s'[: len(guilty) == 1]} scores that are no numbers"
            text = f"{start}: {one}, of {of} in the batch ({BAD_BATCH} has all); look at it, or take it out"
            return NonFiniteError(text, by_image=True)
        lr = float(getattr(getattr(module, "recipe", module), "lr", math.nan))
        advice = f"take --lr {lr * SMALLER:g}, a tenth" if math.isfinite(lr) else "take a smaller rate"
        text = f"{start}; no image of it is the cause by itself, so the rate is too high: {advice}"
        return NonFiniteError(f"{text} (batch of {of}: {self._names(rows.tolist())})", by_image=False)

    def _names(self, rows: list[int]) -> str:
        names = ", ".join(_spelled(self.data.manifest.paths[row]) for row in rows[:NAMED])
        return names + (f" and {len(rows) - NAMED} more, see {BAD_BATCH}" if len(rows) > NAMED else "")

    def _write(self, rows: list[int], guilty: list[int]) -> None:
        manifest = self.data.manifest
        lines = [
            (_spelled(manifest.paths[row]), manifest.classes[manifest.labels[row]], "no numbers" * (row in guilty))
            for row in rows
        ]
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("path", "label", "detail"), *lines])
        publish_text(self.folder / BAD_BATCH, text.getvalue())


def _spelled(path: str) -> str:
    """Return a path as UTF-8 can spell it."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def odd_images(module: LightningModule, inputs: Tensor | Activations) -> Tensor:
    """Return bool (N,): the images that are no numbers, or get scores that are none, where others do get some."""
    tensors = [inputs] if isinstance(inputs, Tensor) else [*inputs.pooled]
    if not isinstance(inputs, Tensor) and inputs.at_cut is not None:
        tensors.append(inputs.at_cut)
    n = len(tensors[0])
    odd = torch.zeros(n, dtype=torch.bool, device=tensors[0].device)
    for tensor in tensors:
        if tensor.is_floating_point():
            odd |= ~tensor.isfinite().reshape(n, -1).all(dim=1)
    if odd.any():
        return odd
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            odd |= ~module(inputs).isfinite().all(dim=1)
    finally:
        for part, mode in modes:
            part.training = mode
    return torch.zeros_like(odd) if odd.all() else odd
