"""A batch that does not fit into memory goes through the network in parts, within the same optimizer step.

To halve the loader's batches and double the Trainer's accumulation would, in mid-epoch, change the loader, its position
and the count of batches. Split inside the step, all of that stays: the order of the images, their views and blends,
the number of steps and the schedule, so that a run goes on in the very step that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from toolkit.errors import NO_MEMORY, ToolkitError
from toolkit.progress import say

SIGNS = (NO_MEMORY, "out of memory", "cublas_status_alloc_failed")  # in the words of torch's allocators

Learn = Callable[[slice], tuple[Tensor, Tensor]]


class _Step(NamedTuple):
    """A batch in work. n: its images. learn: see SplitSteps.forward. kept: the gradients of earlier batches of its
    step. drawn: the random state at its start."""

    n: int
    learn: Learn
    kept: list[Tensor | None]
    drawn: tuple[Tensor, Tensor | None]


class SplitSteps:
    """Halves the images that go through at once whenever memory runs out, and goes on with the same batch.

    The gradient of a step is that of the mean loss over all its images, whatever the parts; what differs is rounding,
    the draws of dropout, and the statistics of norms that move with the batch, which are then those of the parts.

    at_once: images that go through together; None for all of a batch. parameters: what learns.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], at_once: int | None = None) -> None:
        self.at_once = at_once
        self.has_gradients = False  # of the batch in work, before the Trainer asks for them
        self.unspent = False  # whether batches have added gradients, and no step was taken since
        self._parameters = [p for p in parameters if p.requires_grad]
        self._step: _Step | None = None
        self._splitting = False

    def forward(
        self, n: int, learn: Learn, backward: Callable[[Tensor], object], *, begins: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss over n images, to go backward from, and what else `learn` gives, summed.

        learn: a slice of the images → its share of the mean loss over all n, and a number that adds up. backward: adds
        the gradients of a loss. begins: whether this is the first batch of its optimizer step.
        """
        kept = [None if begins else p.grad for p in self._parameters]
        self._step = _Step(n, learn, kept, _random_state())
        if self.at_once is None or n <= self.at_once:
            try:
                return learn(slice(None))
            except RuntimeError as error:
                self._halve(n, error)
        return self._in_parts(backward)

    def backward(self, loss: Tensor, plain: Callable[[], None], again: Callable[[Tensor], object]) -> None:
        """Add the gradients of a loss by `plain`, unless they are there; where memory runs out, part by part."""
        if self._splitting:  # the parts have their own way out
            return plain()
        self.unspent = False  # if this fails, they are not whole
        self._add_batch(loss, plain, again)
        self.unspent = True

    def _add_batch(self, loss: Tensor, plain: Callable[[], None], again: Callable[[Tensor], object]) -> None:
        step, self._step = self._step, None
        if self.has_gradients or step is None:
            there, self.has_gradients = self.has_gradients, False
            return None if there else plain()
        self._put([None] * len(step.kept))  # what a failure leaves half done must not touch earlier batches'
        try:
            plain()
        except RuntimeError as error:
            self._halve(step.n, error)
        else:
            return self._add(step.kept)
        loss.detach_()  # lets go of the activations
        self._step = step
        self._in_parts(again)
        self._step, self.has_gradients = None, False
        return None

    def gradients(self) -> list[Tensor | None] | None:
        """Return what the batches of a step in work have added up so far; None between steps."""
        return [p.grad for p in self._parameters] if self.unspent else None

    def go_on(self, gradients: list[Tensor | None]) -> None:
        """Put back what `gradients` returned, for the rest of the step."""
        self._put([None if one is None else one.to(p) for p, one in zip(self._parameters, gradients, strict=True)])
        self.unspent = True

    def _in_parts(self, backward: Callable[[Tensor], object]) -> tuple[Tensor, Tensor]:
        """Go forward and backward part by part; return the loss, from which nothing is left to do, and the sum."""
        step = self._step
        assert step is not None
        while True:
            assert self.at_once is not None
            _set_random_state(step.drawn)
            self._put([None] * len(step.kept))
            found = []
            self._splitting = True
            try:
                for first in range(0, step.n, self.at_once):
                    loss, number = step.learn(slice(first, first + self.at_once))
                    backward(loss)
                    found.append((loss.detach(), number.detach()))
                    del loss
            except RuntimeError as error:
                self._halve(min(step.n, self.at_once), error)
                continue
            finally:
                self._splitting = False
            self._add(step.kept)
            self.has_gradients = True
            losses, numbers = zip(*found, strict=True)
            return torch.stack(losses).sum().requires_grad_(), torch.stack(numbers).sum()

    def _halve(self, n: int, error: RuntimeError) -> None:
        """Take half of n images at once from now on; raises what is no lack of memory, or has nothing to halve."""
        if not is_out_of_memory(error):
            raise error
        if n <= 1:
            raise ToolkitError(
                "out of memory with a single image at once; take a smaller --image_size, a later --cut, or a smaller "
                "--backbone"
            ) from error
        self.at_once = -(-n // 2)
        say(
            f"note: out of memory with {n} images at once: from now on a batch goes through {self.at_once} at a time, "
            "and their gradients add up; steps, order and rates stay the same"
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _put(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def _add(self, gradients: list[Tensor | None]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch says, for a GPU or for the CPU, that there is no memory left."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in SIGNS)


def _random_state() -> tuple[Tensor, Tensor | None]:
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), torch.cuda.get_rng_state() if used else None


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
