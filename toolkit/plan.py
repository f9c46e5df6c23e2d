"""The types that say what to train: FreezeSpec for the network, TransferPlan for the whole run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from toolkit.errors import SettingError

STRATEGIES = ("head", "partial", "full", "scratch")

# notes: Training (Transfer Learning): the new head learns at the full rate, top layers at about 1/10 of it,
# middle layers at about 1/100.
HEAD_MULTIPLIER, TOP_MULTIPLIER, MIDDLE_MULTIPLIER = 1.0, 0.1, 0.01


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
    def from_scratch(cls, n_stages: int) -> FreezeSpec:
        """Train every stage at the head's own rate: there is nothing pretrained to protect."""
        return cls((StageRule(True, 1.0),) * n_stages)


@dataclass(frozen=True)
class TransferPlan:
    """Everything that decides a run, and why; written to `plan.json`.

    cut: first trainable stage (n_stages for `head`). taps: stages whose pooled outputs feed the head.
    lr: the head's learning rate (None where a closed solver needs none). multipliers: by stage, then the head.
    views: distinct seeded views of a training image. similarity, probes, runner_up, predicted: measured
    evidence, None where nothing measured them. overridden: keys that the user set. verdict: how much of the fine-tuning
    was kept, and why (`toolkit.training.mixing.Verdict`); None where nobody had to judge.
    """

    strategy: str
    backbone: str
    cut: int
    taps: tuple[int, ...]
    head: str
    lr: float | None
    multipliers: tuple[float, ...]
    weight_decay: float | None
    epochs: int | None
    views: int
    augmentation: str
    image_size: int
    facts: dict[str, Any]
    reasons: tuple[str, ...]
    similarity: float | None = None
    probes: tuple[dict[str, Any], ...] = ()
    runner_up: str | None = None
    predicted: dict[str, Any] | None = None
    overridden: tuple[str, ...] = ()
    verdict: dict[str, Any] | None = None

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
