"""The learning rate of every parameter group by step, as the schedule had it, and as the history noted it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from toolkit.plan import TransferPlan
from toolkit.reporting.figure import blank
from toolkit.training.schedule import rate_factors

DECADES = 4  # that are shown below the highest rate of the slowest group
POINTS = 2_000  # of a line, at most
LINES_A_COLUMN = 12  # of the legend

Row = Mapping[str, float | None]


@dataclass(frozen=True)
class RateLine:
    """The rate of some groups at some steps, of equal lengths."""

    name: str
    steps: tuple[int, ...]
    rates: tuple[float, ...]


def rate_lines(plan: TransferPlan, rows: Sequence[Row]) -> list[RateLine]:
    """Return the rates that a plan's training had in the steps that the history tells of; none for an empty history.

    Groups that learn alike are one line. After a collapse training began again with lower rates: the factor is what the
    head's noted rate says.
    """
    assert plan.recipe is not None and plan.epochs is not None
    done, epochs = _end(rows)
    if not done:
        return []
    total, an_epoch = round(done / epochs * plan.epochs), done / epochs
    *stages, head = plan.multipliers
    parts = [(f"stage {number}", stages[number]) for number in range(plan.cut, len(stages))]
    parts.append(("head", head))
    depths = [len(parts) - number for number in range(1, len(parts) + 1)]
    factors = rate_factors(plan.recipe, depths, total, an_epoch)
    scale = _scale(rows, [plan.recipe.lr * head * factors[-1](_step(row)) for row in rows])
    steps = _steps(done)
    alike: dict[tuple[float, ...], list[str]] = {}
    for (name, multiplier), factor in zip(parts, factors, strict=True):
        rates = tuple(plan.recipe.lr * scale * multiplier * factor(step) for step in steps)
        alike.setdefault(rates, []).append(name)
    return [RateLine(_together(names), steps, rates) for rates, names in reversed(alike.items())]


def scheduled_line(name: str, rate: Callable[[int, int], float], rows: Sequence[Row], epochs: int) -> list[RateLine]:
    """Return one line of rates that are a function of the step and of the number of all steps."""
    done, seen = _end(rows)
    if not done:
        return []
    steps = _steps(done)
    return [RateLine(name, steps, tuple(rate(step, round(done / seen * epochs)) for step in steps))]


def draw_rates(lines: Sequence[RateLine], rows: Sequence[Row]) -> Figure:
    """Return the lines, and as points what the history noted of the head's rate at the end of each epoch."""
    figure = blank(8.0, 4.2)
    axes = figure.subplots(gridspec_kw={"left": 0.1, "right": 0.98, "bottom": 0.13, "top": 0.9})
    for line in lines:
        axes.plot(line.steps, [rate if rate > 0 else float("nan") for rate in line.rates], label=line.name)
    noted = [(_step(row), row["lr_head"]) for row in rows if row.get("lr_head")]
    if noted:
        axes.plot(*zip(*noted, strict=True), "o", color="black", markersize=4, label="noted at the end of an epoch")
    axes.set(title="Learning rate of each part", xlabel="step", ylabel="learning rate", yscale="log")
    lowest = min((max(line.rates) for line in lines if max(line.rates) > 0), default=1.0)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, lowest * 10.0**-DECADES), top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best", ncols=1 + len(axes.lines) // LINES_A_COLUMN)
    return figure


def _step(row: Row) -> int:
    return int(row.get("step") or 0)


def _end(rows: Sequence[Row]) -> tuple[int, int]:
    """Return the number of steps and of epochs that a history tells of."""
    return (_step(rows[-1]), int(rows[-1].get("epoch") or 0)) if rows else (0, 0)


def _steps(done: int) -> tuple[int, ...]:
    every = max(1, done // POINTS)
    return (*range(0, done - 1, every), done - 1)


def _scale(rows: Sequence[Row], expected: Sequence[float]) -> float:
    """Return what the noted rates are of the expected ones, by the row where those are highest."""
    both = [(want, row["lr_head"]) for row, want in zip(rows, expected, strict=True) if row.get("lr_head") and want]
    if not both:
        return 1.0
    want, noted = max(both)
    assert noted is not None
    return noted / want


def _together(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    stages = [name.removeprefix("stage ") for name in names if name != "head"]
    told = f"stages {stages[0]} to {stages[-1]}" if len(stages) > 1 else f"stage {stages[0]}"
    return f"{told} and head" if "head" in names else told
