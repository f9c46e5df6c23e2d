"""Defects that show when 20 images are to be learnt by heart, each with a sound counterpart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.checks.nets import Function, case, conv, digits, mlp
from tests.checks.planted import FAIL, PASS, Case, ModelDefect

Batch = tuple[Tensor, Tensor]


def at_rate(seed: int, rate: float) -> Case:
    return case(mlp(seed), seed, lr=rate)


def conv_at_rate(seed: int, rate: float) -> Case:
    return case(conv(seed), seed, lr=rate)


def fed(seed: int, change: Callable[[Tensor, Tensor, torch.Generator], Batch], *, is_fresh: bool = True) -> Case:
    """Return a sound network whose batches are changed: anew at every step, or all in the same way."""
    inputs, labels = digits(seed)

    def batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(step if is_fresh else 0)
        return change(inputs, labels, generator)

    first_inputs, first_labels = batch(0)
    made = case(mlp(seed), seed, batch=batch)
    return Case(made.network, first_inputs, first_labels, made.settings, batch)


def shuffled_labels(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Batch:
    return inputs, labels[torch.randperm(len(labels), generator=generator)]


def shuffled_apart(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Batch:
    """Images and labels go through two loaders, and only one of them shuffles."""
    return inputs[torch.randperm(len(labels), generator=generator)], labels


def shuffled_together(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Batch:
    order = torch.randperm(len(labels), generator=generator)
    return inputs[order], labels[order]


def one_label_redrawn(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Batch:
    """Some labels are drawn anew at every step: a third of them, as a careless label smoothing may do."""
    new = labels.clone()
    new[::3] = torch.randint(5, (len(labels[::3]),), generator=generator)
    return inputs, new


def two_labels(inputs: Tensor, labels: Tensor, generator: torch.Generator, *, is_conflict: bool = True) -> Batch:
    """The second image is the first one, with its own label or with another class's."""
    inputs, labels = inputs.clone(), labels.clone()
    inputs[1] = inputs[0]
    labels[1] = 4 if is_conflict else labels[0]
    return inputs, labels


def blank(inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Batch:
    return torch.zeros_like(inputs), labels


def noise(inputs: Tensor, labels: Tensor, generator: torch.Generator, *, strength: float = 0.0) -> Batch:
    """Nothing but noise, or (strength > 0) the images and a little of it."""
    drawn = torch.randn(inputs.shape, generator=generator)
    return (inputs + strength * drawn if strength else drawn), labels


def ends_in(seed: int, function: Callable[[Tensor], Tensor], **settings: object) -> Case:
    return case(mlp(seed, after=Function(function)), seed, **settings)


def cut(seed: int, function: Callable[[Tensor], Tensor]) -> Case:
    """A network whose scores come out of one layer; what follows has no weights."""
    return case(nn.Sequential(conv(seed), Function(function)), seed)


def narrow(seed: int, n_positions: int) -> Case:
    """All of an image becomes the mean of so many positions, and a Linear makes scores of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(n_positions**2, 64), nn.ReLU(), nn.Linear(64, 5))
    return case(nn.Sequential(nn.AdaptiveAvgPool2d(n_positions), nn.Flatten(), head), seed, lr=1e-2)


def negative_scores(seed: int, activation: type[nn.Module]) -> Case:
    """The scores pass an activation, and two classes start below zero."""
    network = mlp(seed, after=activation())
    with torch.no_grad():
        network[-2].bias[:2] = -6.0
    return case(network, seed)


def drops(seed: int, dropout: nn.Module) -> Case:
    return case(mlp(seed, dropout), seed)


def all_frozen(seed: int, *, has_head: bool) -> Case:
    network = conv(seed).requires_grad_(False)
    network[-1].requires_grad_(has_head)
    return case(network, seed, frozen=("0.", "3."), lr=0.2)


def of(function: Callable[..., Case], *arguments: object, **settings: object) -> Callable[[int], Case]:
    """Return the planting with everything but the seed given."""
    return lambda seed: function(seed, *arguments, **settings)


def _defect(
    name: str, wrong: str, plant: Callable[[int], Case], sound: Callable[[int], Case], word: str = ""
) -> ModelDefect:
    """A network that cannot learn 20 images by heart is pointless to train: all of these must fail."""
    return ModelDefect(name, wrong, "overfit", FAIL, plant, sound, word, PASS)


one_label = lambda *arguments: two_labels(*arguments, is_conflict=False)  # noqa: E731
little_noise = lambda *arguments: noise(*arguments, strength=0.02)  # noqa: E731

LEARNING_DEFECTS = [
    _defect(
        "labels_shuffled",
        "other labels at every step",
        of(fed, shuffled_labels),
        of(fed, shuffled_labels, is_fresh=False),
        "labels change",
    ),
    _defect(
        "shuffled_apart",
        "the images are shuffled at every step, their labels are not",
        of(fed, shuffled_apart),
        of(fed, shuffled_together),
        "labels change",
    ),
    _defect(
        "labels_redrawn",
        "a third of the labels is drawn anew at every step",
        of(fed, one_label_redrawn),
        of(fed, one_label_redrawn, is_fresh=False),
        "labels change",
    ),
    _defect("rate_1e-9", "a rate of 1e-9", of(at_rate, 1e-9), of(at_rate, 1e-2), "rate"),
    # After 200 steps of 1e6 this small network has learnt the images all the same, by weights of 1e6 and losses of 1e13
    # on the way: the last loss alone does not tell.
    _defect("rate_1e6", "a rate of 1e6", of(at_rate, 1e6), of(at_rate, 3e-3), "too large"),
    _defect(
        "rate_1e6_deep",
        "a rate of 1e6 in a convolutional network",
        of(conv_at_rate, 1e6),
        of(conv_at_rate, 3e-3),
        "too large",
    ),
    _defect(
        "gradients_cut",
        "the scores are detached",
        of(cut, lambda x: x.detach()),
        of(cut, lambda x: x.clone()),
        "gradients",
    ),
    _defect(
        "gradients_zero",
        "the scores are rounded",
        of(cut, torch.round),
        of(cut, lambda x: x + (x.round() - x).detach() * 0),
        "gradients",
    ),
    _defect(
        "nothing_trains",
        "all is frozen, the head as well",
        of(all_frozen, has_head=False),
        of(all_frozen, has_head=True),
    ),
    _defect("two_labels", "one image is there under two labels", of(fed, two_labels), of(fed, one_label), "two labels"),
    # Blank images are identical under different labels: the contract's words for those hold.
    _defect("blank", "augmentation leaves nothing of the images", of(fed, blank), of(fed, little_noise), "two labels"),
    # The sound one gets other images at every step, though the same scenes: who insists on equal tensors warns.
    _defect("noise", "augmentation leaves fresh noise of the images", of(fed, noise), of(fed, little_noise)),
    # The first loss of this one is right: ln C. Its least loss with 5 classes is ln(1 + 4/e) = 0.90. A second
    # log-softmax changes nothing, and is sound.
    _defect(
        "softmax_twice",
        "softmax before the cross-entropy",
        of(ends_in, lambda x: x.softmax(1)),
        of(ends_in, lambda x: x.log_softmax(1)),
    ),
    _defect(
        "squashed_hinge",
        "scores of ±0.1 against a margin of 1",
        of(ends_in, lambda x: 0.1 * x.tanh(), loss="hinge"),
        of(ends_in, lambda x: 10 * x.tanh(), loss="hinge"),
    ),
    _defect(
        "dead_scores",
        "a ReLU stands before the scores, and two classes begin below it",
        of(negative_scores, nn.ReLU),
        of(negative_scores, nn.Identity),
    ),
    _defect(
        "ignores_input",
        "the features are multiplied by 0",
        lambda seed: case(mlp(seed, Function(lambda x: x * 0)), seed),
        lambda seed: case(mlp(seed, Function(lambda x: x * 1)), seed),
    ),
    # Called as a function, dropout does not know of eval mode.
    _defect(
        "dropout_left_on",
        "dropout of 0.95 that eval mode does not end",
        lambda seed: drops(seed, Function(lambda x: functional.dropout(x, 0.95))),
        lambda seed: drops(seed, nn.Dropout(0.2)),
    ),
    _defect("too_narrow", "an image becomes one number", of(narrow, 1), of(narrow, 8)),
]
