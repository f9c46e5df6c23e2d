"""Defects of networks before the first step, each with a sound counterpart."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.checks.nets import N_CLASSES, Function, case, conv, mlp, seeded, transfer
from tests.checks.planted import FAIL, WARN, Case, ModelDefect


def scaled_last(seed: int, factor: float, **settings: str) -> Case:
    network = mlp(seed)
    with torch.no_grad():
        network[-1].weight.mul_(factor)
    return case(network, seed, **settings)


def biased(seed: int, values: tuple[float, ...]) -> Case:
    network = mlp(seed)
    with torch.no_grad():
        network[-1].bias.copy_(torch.tensor(values))
    return case(network, seed)


def n_outputs(seed: int, n: int) -> Case:
    network = mlp(seed)
    network[-1] = seeded(seed, lambda: nn.Linear(64, n))
    return case(network, seed)


def standardised(seed: int, epsilon: float) -> Case:
    """Divide every pixel by its own deviation, which is 0 in the corners."""
    made = case(mlp(seed), seed)
    inputs = made.inputs - made.inputs.mean(0)
    return Case(made.network, inputs / (made.inputs.std(0) + epsilon), made.labels, made.settings)


def squares(network: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Linear,)) -> Tensor:
    weights = [module.weight for module in network.modules() if isinstance(module, kinds)]
    return torch.stack([(weight**2).sum() for weight in weights]).sum() if weights else torch.zeros(())


def penalised(seed: int, penalty: Callable[[nn.Module], Tensor]) -> Case:
    return case(mlp(seed), seed, penalty=penalty)


def of_a_copy(seed: int) -> Case:
    network = mlp(seed)
    before = copy.deepcopy(network).requires_grad_(False)
    return case(network, seed, penalty=lambda _: squares(before))


class TwoHeads(nn.Module):
    """A network with an auxiliary head that adds to the scores, or that nobody asks."""

    def __init__(self, *, is_used: bool) -> None:
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(64, 32), nn.Linear(32, N_CLASSES), nn.Linear(32, N_CLASSES)
        self.is_used = is_used

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.body(x.flatten(1)))
        return self.head(features) + self.auxiliary(features) if self.is_used else self.head(features)


def two_heads(seed: int, *, is_used: bool) -> Case:
    return case(seeded(seed, lambda: TwoHeads(is_used=is_used)), seed)


def without_gradient(seed: int, name: str, *, is_declared: bool) -> Case:
    """Freeze the parameters that begin with a name; say so, or not."""
    network = mlp(seed)
    for parameter_name, parameter in network.named_parameters():
        parameter.requires_grad_(not parameter_name.startswith(name))
    return case(network, seed, frozen=(name,) if is_declared else ())


def all_frozen(seed: int) -> Case:
    return case(mlp(seed).requires_grad_(False), seed, frozen=("1.", "3."))


def still_trainable(seed: int) -> Case:
    return case(mlp(seed), seed, frozen=("1.",))


def thawed_prefix(seed: int) -> Case:
    """Somebody calls `requires_grad_()` on the frozen network: weight decay would move the prefix."""
    made = transfer(seed)
    made.network.requires_grad_(True)
    return made


def whole_under(seed: int, mode: Callable[[], torch.no_grad | torch.enable_grad]) -> Case:
    network = mlp(seed)
    network.forward = mode()(network.forward)  # type: ignore[method-assign]
    return case(network, seed)


def between(seed: int, function: Callable[[Tensor], Tensor]) -> Case:
    return case(mlp(seed, Function(function)), seed)


def straight_through(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def normed(seed: int, norm: nn.Module) -> Case:
    return case(conv(seed, norm), seed)


def ends_in(seed: int, shape: Callable[[Tensor], Tensor]) -> Case:
    return case(nn.Sequential(mlp(seed), Function(shape)), seed)


def over_batch(x: Tensor, *, is_unbiased: bool) -> Tensor:
    return (x - x.mean(0)) / (x.std(0, correction=int(is_unbiased)) + 1e-5)


def of(function: Callable[..., Case], *arguments: object, **settings: object) -> Callable[[int], Case]:
    """Return the planting with everything but the seed given."""
    return lambda seed: function(seed, *arguments, **settings)


ZEROS = (0.0,) * N_CLASSES
MODEL_DEFECTS = [
    ModelDefect(
        "large_last_layer",
        "the last weights are 100 times too large",
        "first_loss",
        WARN,
        of(scaled_last, 100.0),
        of(scaled_last, 1.0),
    ),
    # Scores may be shifted all alike without changing a probability.
    ModelDefect(
        "biased_scores",
        "one class starts with a bias of 10",
        "first_loss",
        WARN,
        of(biased, (10.0, *ZEROS[1:])),
        of(biased, (10.0,) * N_CLASSES),
    ),
    ModelDefect(
        "imagenet_head",
        "the 1,000 outputs of the pretrained network are still there",
        "first_loss",
        WARN,
        of(n_outputs, 1000),
        of(n_outputs, N_CLASSES),
    ),
    ModelDefect(
        "too_few_outputs",
        "fewer outputs than classes",
        "first_loss",
        FAIL,
        of(n_outputs, N_CLASSES - 1),
        of(n_outputs, N_CLASSES),
    ),
    ModelDefect(
        "hinge_scale",
        "scores in the hundreds against a margin of 1",
        "first_loss",
        WARN,
        of(scaled_last, 300.0, loss="hinge"),
        of(scaled_last, 0.1, loss="hinge"),
    ),
    ModelDefect(
        "zero_by_zero",
        "a constant pixel divided by its deviation: NaN",
        "first_loss",
        FAIL,
        of(standardised, 0.0),
        of(standardised, 1e-3),
    ),
    ModelDefect(
        "negative_penalty",
        "the penalty has the wrong sign",
        "regularized_loss",
        WARN,
        of(penalised, lambda network: -squares(network)),
        of(penalised, squares),
    ),
    ModelDefect(
        "empty_penalty",
        "the penalty looks for layers of a kind that is not there",
        "regularized_loss",
        WARN,
        of(penalised, lambda network: squares(network, (nn.Conv2d,))),
        of(penalised, lambda network: squares(network, (nn.Conv2d, nn.Linear))),
    ),
    # Such a penalty does rise with λ: only its gradient tells. Who looks at nothing but that it rises misses it.
    ModelDefect(
        "penalty_of_a_copy",
        "the penalty is that of a copy, and pulls at nothing",
        "regularized_loss",
        WARN,
        of_a_copy,
        of(penalised, squares),
    ),
    ModelDefect(
        "detached",
        "a detach() in the middle",
        "gradients",
        FAIL,
        of(between, lambda x: x.detach()),
        of(between, lambda x: x.clone()),
    ),
    ModelDefect(
        "through_numpy",
        "features take a turn through NumPy",
        "gradients",
        FAIL,
        of(between, lambda x: torch.from_numpy(x.detach().numpy().copy())),
        of(between, lambda x: x.contiguous()),
    ),
    ModelDefect(
        "no_grad",
        "the forward pass is decorated with no_grad",
        "gradients",
        FAIL,
        of(whole_under, torch.no_grad),
        of(whole_under, torch.enable_grad),
    ),
    ModelDefect(
        "rounded",
        "features are rounded: the gradient is 0",
        "gradients",
        FAIL,
        of(between, torch.round),
        of(between, straight_through),
    ),
    ModelDefect(
        "ignores_input",
        "features are multiplied by 0",
        "gradients",
        FAIL,
        of(between, lambda x: x * 0),
        of(between, lambda x: x * 1),
    ),
    ModelDefect(
        "unused_parameter",
        "an auxiliary head that nobody asks",
        "gradients",
        WARN,
        of(two_heads, is_used=False),
        of(two_heads, is_used=True),
    ),
    # The rest can still learn on a random head, hence warn.
    ModelDefect(
        "head_without_grad",
        "the head does not require gradients, and nobody declared it frozen",
        "gradients",
        WARN,
        of(without_gradient, "3.", is_declared=False),
        of(without_gradient, "1.", is_declared=True),
    ),
    ModelDefect(
        "all_frozen", "nothing trains", "gradients", FAIL, all_frozen, of(without_gradient, "1.", is_declared=True)
    ),
    ModelDefect(
        "frozen_learns",
        "a layer that is declared frozen receives gradients",
        "gradients",
        WARN,
        still_trainable,
        of(without_gradient, "1.", is_declared=True),
    ),
    ModelDefect(
        "thawed_prefix", "the frozen prefix was made trainable again", "gradients", WARN, thawed_prefix, transfer
    ),
    ModelDefect(
        "norm_of_one",
        "BatchNorm over (N, D) refuses a batch of one",
        "last_batch",
        WARN,
        lambda seed: normed(seed, nn.BatchNorm1d(128)),
        lambda seed: normed(seed, nn.LayerNorm(128)),
    ),
    ModelDefect(
        "squeezed",
        "squeeze() takes the batch's axis along",
        "last_batch",
        WARN,
        of(ends_in, torch.squeeze),
        of(ends_in, lambda x: x.flatten(1)),
    ),
    ModelDefect(
        "spread_of_one",
        "features are divided by a deviation that one image does not have",
        "last_batch",
        WARN,
        of(between, lambda x: over_batch(x, is_unbiased=True)),
        of(between, lambda x: over_batch(x, is_unbiased=False)),
    ),
]
