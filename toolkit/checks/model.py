"""Whether a network can learn at all: its first loss, its regularisation, where gradients go, a batch of one image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.checks.finding import FAIL, PASS, WARN, Finding
from toolkit.checks.learner import Learner, first_of

NEAR, FAR = 0.3, 3.0  # of the expected first loss: what it may be off by, and what is out of all proportion
NEAR_AT_LEAST = 0.75  # nats; scores of variance 1.5, as a last layer after He gives them, add about as much
STRENGTHS = (0.0, 1e-4, 1e-2)
TRIED_STEPS = 3  # behind a last layer of zeros the first gradients are zeros too
LARGEST_STEP = 1e-2
NAMED = 3


def first_loss(learner: Learner, inputs: Any, labels: Tensor) -> Finding:
    """Return whether the loss begins where equal scores put it: ln C, for the hinge C − 1 (notes: Babysitting)."""
    with learner.tried() as network, torch.no_grad():
        scores = network(inputs)
        wrong = _wrong_scores(scores, len(labels), learner.n_classes)
        if wrong is not None:
            return Finding("first_loss", FAIL, wrong, "give the last layer one output for each class")
        loss = float(learner.data_loss(scores.float(), labels))
    expected = learner.first_loss
    name = f"ln {learner.n_classes}" if learner.loss == "cross_entropy" else f"{learner.n_classes} − 1"
    seen = f"the first loss is {loss:.3f}; {expected:.3f} = {name} is that of equal scores"
    if not math.isfinite(loss):
        return Finding("first_loss", FAIL, seen, "look for numbers that are not finite in inputs and weights")
    off = loss - expected
    if abs(off) <= max(NEAR * expected, NEAR_AT_LEAST):
        return Finding("first_loss", PASS, seen)
    if off < 0:
        return Finding("first_loss", WARN, seen, "it knows the labels before it has learned: are they in the inputs?")
    status = FAIL if loss > FAR * expected else WARN
    return Finding("first_loss", status, seen, "make the first weights of the last layer smaller (std 0.01, say)")


def regularized_loss(learner: Learner, inputs: Any, labels: Tensor) -> Finding:
    """Return whether the loss rises with the strength λ of the regularisation, and whether weights feel it.

    Where all weights begin at zero, it is that after one step.
    """
    with learner.tried() as network:
        with torch.no_grad():
            data = float(learner.data_loss(network(inputs).float(), labels))
        _leave_zero(learner, network, inputs, labels)
        penalty = learner.penalty_of(network)
        at = float(penalty.detach())
        felt = penalty.requires_grad and _is_felt(penalty, network)
    losses = [data + strength * at for strength in STRENGTHS]
    told = ", ".join(f"{loss:.4g} at λ = {strength:g}" for loss, strength in zip(losses, STRENGTHS, strict=True))
    if at < 0:
        return Finding(
            "regularized_loss", FAIL, f"the loss falls with λ: {told}", "turn the sign of the penalty around"
        )
    if at == 0 or not math.isfinite(at):
        return Finding("regularized_loss", WARN, f"the penalty is {at:g}: λ does nothing", "let it see the weights")
    if not felt:
        seen = f"the loss rises ({told}), but no weight gets a gradient of the penalty"
        return Finding("regularized_loss", FAIL, seen, "compute it from the parameters themselves, not from copies")
    return Finding("regularized_loss", PASS, f"it rises: {told}")


def gradients(learner: Learner, inputs: Any, labels: Tensor) -> Finding:
    """Return whether gradients reach every parameter that shall learn and none that shall not.

    Three steps are tried, since behind a last layer of zeros the first gradients are zeros. A parameter of
    a module that runs and yet gets no gradient is cut off; that of a module that never runs is merely of no use.
    """
    with learner.tried() as network:
        ran: set[str] = set()
        hooks = [
            module.register_forward_hook(lambda *_, name=name: ran.add(name))
            for name, module in network.named_modules()
        ]
        before = {name: value.detach().clone() for name, value in network.state_dict().items()}
        try:
            reached, problem = _steps(learner, network, inputs, labels)
        finally:
            for hook in hooks:
                hook.remove()
        parameters = dict(network.named_parameters())
        after = network.state_dict()
        moved = [n for n in before if learner.is_frozen(n) and not torch.equal(before[n], after[n])]
    if problem is not None:
        return Finding(
            "gradients", FAIL, problem, "look for numbers that are not finite, and for detach() or no_grad()"
        )
    learning = [name for name in parameters if not learner.is_frozen(name)]
    open_ = [name for name, p in parameters.items() if learner.is_frozen(name) and (p.requires_grad or name in reached)]
    if open_ or moved:
        names = list(dict.fromkeys([*open_, *moved]))
        seen = f"{len(names)} parameters or statistics that are to be frozen learn: {_named(names)}"
        return Finding("gradients", FAIL, seen, "set requires_grad to False there, and keep norms in eval mode")
    shut = [name for name in learning if not parameters[name].requires_grad]
    if shut:
        seen = f"{len(shut)} parameters that are to learn have requires_grad = False: {_named(shut)}"
        return Finding("gradients", FAIL, seen, "set it to True, or name them as frozen")
    missing = [name for name in learning if name not in reached]
    cut = [name for name in missing if name.rpartition(".")[0] in ran]
    if cut:
        seen = f"gradients are cut: {len(cut)} of {len(learning)} parameters get none ({_named(cut)})"
        return Finding(
            "gradients", FAIL, seen, "look for detach(), no_grad(), argmax or .data on their way to the loss"
        )
    if missing:
        seen = f"{len(missing)} parameters are never used: {_named(missing)}"
        return Finding("gradients", WARN, seen, "remove them; training on several devices stops at them")
    frozen = len(parameters) - len(learning)
    return Finding(
        "gradients", PASS, f"they reach all {len(learning)} parameters that learn, none of {frozen} frozen ones"
    )


def last_batch(learner: Learner, inputs: Any, labels: Tensor) -> Finding:
    """Return whether a batch of one image, which an epoch may end with, can be trained on."""
    with learner.tried() as network:
        try:
            loss = learner.data_loss(network(first_of(inputs, 1)).float(), labels[:1])
            loss.backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, IndexError) as error:
            seen = f"a batch of one image fails: {' '.join(str(error).split())[:160]}"
            return Finding("last_batch", FAIL, seen, "drop the last batch, or let norms use running statistics for it")
    if not bool(loss.detach().isfinite()):
        return Finding("last_batch", FAIL, "the loss of a batch of one image is not finite", "look at its norms")
    return Finding("last_batch", PASS, f"a batch of one image has a loss of {float(loss.detach()):.3f}")


def _wrong_scores(scores: Any, n: int, n_classes: int) -> str | None:
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (n, n_classes):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        return f"scores ({n}, {n_classes}) expected, the network gives {shape}"
    return None


def _steps(
    learner: Learner, network: nn.Module, inputs: Any, labels: Tensor, steps: int = TRIED_STEPS
) -> tuple[set[str], str | None]:
    """Train for a few steps; return the parameters that got a gradient other than zero, and what went wrong."""
    reached: set[str] = set()
    trained = [p for p in network.parameters() if p.requires_grad]
    for _ in range(steps):
        network.zero_grad(set_to_none=True)
        loss = learner.data_loss(network(inputs).float(), labels)
        if not loss.requires_grad:
            return reached, "gradients are cut: the loss depends on no parameter that learns"
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in network.named_parameters():
            if parameter.grad is None:
                continue
            if not bool(parameter.grad.isfinite().all()):
                return reached, f"the gradient of {name} is not finite"
            if bool(parameter.grad.any()):
                reached.add(name)
        gradients = [p.grad for p in trained if p.grad is not None]
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        rate = min(learner.lr, LARGEST_STEP) / max(1.0, float(length))  # no unit shall die of it
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.sub_(rate * parameter.grad)
    return reached, None


def _leave_zero(learner: Learner, network: nn.Module, inputs: Any, labels: Tensor) -> None:
    """Take one step where all weights are zero, where a penalty is zero too."""
    weights = [p for p in network.parameters() if p.requires_grad]
    if learner.penalty is None and not any(bool(p.any()) for p in weights if p.ndim > 1):
        _steps(learner, network, inputs, labels, steps=1)


def _is_felt(penalty: Tensor, network: nn.Module) -> bool:
    parameters = [p for p in network.parameters() if p.requires_grad]
    found = torch.autograd.grad(penalty, parameters, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in found)


def _named(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
