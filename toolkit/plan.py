"""The types that say what to train: FreezeSpec for the network, Recipe for the steps, TransferPlan for a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.errors import SettingError, unknown_name

STRATEGIES = ("head", "partial", "full", "scratch")

# notes: Training (Transfer Learning): the new head learns at the full rate, top layers at about 1/10 of it,
# middle layers at about 1/100.
HEAD_MULTIPLIER, TOP_MULTIPLIER, MIDDLE_MULTIPLIER = 1.0, 0.1, 0.01

PARTIAL_STAGES = 2  # at least: the top stage and a middle one below it, the notes' two rates
PARTIAL_SHARE = 0.45  # of the weights that train, at least: about half; `planning/recipes.py` says what chose it


@dataclass(frozen=True)
class StageRule:
    """What happens to one stage: whether it trains, and at which fraction of the head's learning rate."""

    trainable: bool
    multiplier: float


@dataclass(frozen=True)
class FreezeSpec:
    """Declared freezing of a network: one rule a stage, a frozen prefix before a trainable tail.

    Freezing is state, not an action: `TransferNetwork` applies it once and holds it through `.train()`,
    checkpoints and resume.
    """

    rules: tuple[StageRule, ...]
    head_multiplier: float = HEAD_MULTIPLIER

    def __post_init__(self) -> None:
        trainable = [rule.trainable for rule in self.rules]
        if trainable != sorted(trainable):
            raise SettingError(
                f"freezing: the frozen stages come first, then the trainable ones; got trainable={trainable}"
            )
        if any(rule.multiplier < 0 for rule in self.rules) or self.head_multiplier <= 0:
            raise SettingError("freezing: learning-rate multipliers are not negative, and the head's is positive")

    @property
    def cut(self) -> int:
        """Index of the first trainable stage; the number of stages where all are frozen."""
        return sum(not rule.trainable for rule in self.rules)

    @classmethod
    def at_cut(
        cls, n_stages: int, cut: int, *, top: float = TOP_MULTIPLIER, middle: float = MIDDLE_MULTIPLIER
    ) -> FreezeSpec:
        """Freeze the stages before `cut`; the last stage trains at `top`, the other trainable ones at `middle`."""
        if not 0 <= cut <= n_stages:
            raise SettingError(f"cut: 0 to {n_stages} expected for {n_stages} stages, got {cut}")
        rules = [StageRule(stage >= cut, 0.0 if stage < cut else middle) for stage in range(n_stages)]
        if cut < n_stages:
            rules[-1] = StageRule(True, top)
        return cls(tuple(rules))

    @classmethod
    def decaying(cls, n_stages: int, cut: int, decay: float) -> FreezeSpec:
        """Freeze the stages before `cut`; of the others each trains at `decay` times the rate of the part above it,
        the head being the uppermost (layer-wise decay: Clark et al. 2020, ELECTRA); 1 gives one rate for all."""
        rates = [decay ** (n_stages - stage) if stage >= cut else 0.0 for stage in range(n_stages)]
        return cls(tuple(StageRule(stage >= cut, rate) for stage, rate in enumerate(rates)))

    @classmethod
    def from_scratch(cls, n_stages: int) -> FreezeSpec:
        """Train every stage at the head's own rate: there is nothing pretrained to protect."""
        return cls((StageRule(True, 1.0),) * n_stages)


def partial_cut(stage_sizes: Sequence[int]) -> int:
    """Return the first stage that `partial` trains: the last but one with weights, or an earlier one, from which on
    about half of all weights train; never the first, unless it is the only one.

    stage_sizes: parameters by stage. The names of families mean stages of very different weight: the last two are 94 %
    of a ResNet-50 and 30 % of an EfficientNet-Lite0, of which the last three are 79 %.
    """
    cut, total = len(stage_sizes), sum(stage_sizes)
    while cut > 1:
        tail = stage_sizes[cut:]
        if sum(tail) >= PARTIAL_SHARE * total and sum(size > 0 for size in tail) >= PARTIAL_STAGES:
            break
        cut -= 1
    return min(cut, len(stage_sizes) - 1)


# Names that a Recipe's parts may have.
RECIPE_NAMES: dict[str, tuple[str, ...]] = {
    "optimizer": ("adamw", "sgd"),
    "decay_towards": ("zero", "start"),
    "batchnorm": ("fixed", "frozen", "moving"),
}


@dataclass(frozen=True)
class Recipe:
    """How a network learns, step by step; the strategies' own are in `planning/recipes.py`.

    lr: the head's rate; a stage has it times its multiplier. optimizer: "adamw", or "sgd" with momentum 0.9 (Nesterov).
    weight_decay: of weights, not of biases and norms; decay_towards: "zero", or "start", the weights that training
    begins with (L2-SP: Li et al. 2018, "Explicit inductive bias for transfer learning"), a step of lr · weight_decay.
    batch_size: images a batch. warmup: share of the steps in which the rate rises; half a cosine follows.
    label_smoothing: share of a target spread over all classes. mixup, cutmix: α of the Beta(α, α) that says how much
    of another image is blended in (Zhang et al. 2018) or pasted in as a rectangle (Yun et al. 2019), at the first
    stage that trains; 0 for neither, and with both each batch has one of them. drop_path: how often the last block
    that trains is skipped, earlier ones less (stochastic depth: Huang et al. 2016); None as the network has it.
    batchnorm: of the stages that train; "fixed" keeps statistics, "frozen" scale and shift too, "moving" neither.
    ema: how much of the average of the weights stays at each step; 0 takes the last weights. unfreeze: epochs after
    which the next stage below begins to learn, the head from the start (gradual unfreezing: Howard & Ruder 2018); 0 for
    all at once.
    Raises SettingError for values out of range.
    """

    lr: float = 1e-2
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    decay_towards: str = "zero"
    batch_size: int = 32
    warmup: float = 0.1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float | None = None
    batchnorm: str = "fixed"
    ema: float = 0.0
    unfreeze: int = 0

    def __post_init__(self) -> None:
        for name, known in RECIPE_NAMES.items():
            if getattr(self, name) not in known:
                raise unknown_name(name, str(getattr(self, name)), known)
        shares = ("label_smoothing", "drop_path", "ema")
        sizes = ("weight_decay", "mixup", "cutmix")
        sound = 0 < self.lr < math.inf and 0 <= self.warmup <= 1 and self.batch_size >= 1 and self.unfreeze >= 0
        sound = sound and all(0 <= (getattr(self, name) or 0) < 1 for name in shares)
        if not (sound and all(0 <= getattr(self, name) < math.inf for name in sizes)):
            raise SettingError(
                "recipe: lr > 0, batch_size >= 1, warmup from 0 to 1, label_smoothing, drop_path and ema from 0 to "
                f"below 1, the others not negative expected, got {self}"
            )


@dataclass(frozen=True)
class TransferPlan:
    """Everything that decides a run, and why; written to `plan.json`.

    cut: first trainable stage (n_stages for `head`). taps: stages whose pooled outputs feed the head.
    recipe: how the tail learns (None where a closed solver needs none). multipliers: by stage, then the head.
    views: distinct seeded views of a training image. similarity, probes, runner_up, predicted: measured
    evidence, None where nothing measured them. ways: what was weighed, the chosen one among them, each with its
    strategy, cut, expected gain in accuracy over the head, work, and whether that is within the budget. overridden:
    keys that the user set. verdict: how much of the fine-tuning was kept, and why (`toolkit.training.mixing.Verdict`);
    None where nobody had to judge. rate_test: what a range test found: `multiplier` on the strategy's own rate,
    `steps`, and the `rehearsals` of rates that had the last word; None where there was none.
    """

    strategy: str
    backbone: str
    cut: int
    taps: tuple[int, ...]
    head: str
    recipe: Recipe | None
    multipliers: tuple[float, ...]
    epochs: int | None
    views: int
    augmentation: str
    image_size: int
    facts: dict[str, Any]
    reasons: tuple[str, ...]
    similarity: float | None = None
    probes: tuple[dict[str, Any], ...] = ()
    ways: tuple[dict[str, Any], ...] = ()
    runner_up: str | None = None
    predicted: dict[str, Any] | None = None
    overridden: tuple[str, ...] = ()
    verdict: dict[str, Any] | None = None
    rate_test: dict[str, Any] | None = None

    def freeze_spec(self) -> FreezeSpec:
        """Return the freezing that this plan declares."""
        *stages, head = self.multipliers
        return FreezeSpec(tuple(StageRule(i >= self.cut, m) for i, m in enumerate(stages)), head)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransferPlan:
        """Rebuild from `to_dict`'s values."""
        as_tuples: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        if as_tuples.get("recipe") is not None:
            as_tuples["recipe"] = Recipe(**as_tuples["recipe"])
        return cls(**as_tuples)

    def __str__(self) -> str:
        trains = {
            "head": "head only",
            "partial": f"head and stages {self.cut} to {len(self.multipliers) - 2}",
            "full": "head and every stage",
            "scratch": "everything, at one rate",
        }[self.strategy]
        lines = [f"plan: {self.strategy} ({trains}) on {self.backbone} at {self.image_size} px"]
        lines += [f"  - {reason}" for reason in self.reasons]
        if self.overridden:
            lines.append(f"  set by you: {', '.join(self.overridden)}")
        return "\n".join(lines)
