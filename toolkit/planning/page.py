"""A plan as a page for a person: what was measured, what it decided, what else was weighed and what that would cost."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.plan import TransferPlan
from toolkit.planning.facts import Facts
from toolkit.planning.similarity import in_words
from toolkit.storage import as_size


def page(plan: TransferPlan) -> str:
    """Return the evidence as a table, the decision with its reasons, and what it and the others would take."""
    lines = ["measured", *(f"  {line}" for line in _evidence(plan)), "", str(plan)]
    if plan.ways or plan.predicted is not None:
        lines += ["", "weighed" if plan.ways else "foreseen", *(f"  {line}" for line in _ways(plan))]
    return "\n".join(lines)


def _evidence(plan: TransferPlan) -> list[str]:
    lines = [f"images      {Facts(**plan.facts).in_words()}"]
    if plan.similarity is not None:
        lines.append(f"similarity  {plan.similarity:.2f}: {in_words(plan.similarity)}")
    probes = [probe for probe in plan.probes if "n" in probe]  # a run's plan has the candidates of its head as well
    if probes:
        cells = [(p["taps"], f"{p['accuracy']:.3f}") for p in probes]
        lines += _columns([("stage", "accuracy"), *((str(taps[0]), told) for taps, told in cells if len(taps) == 1)])
        together = [(f"last {len(taps)}", told) for taps, told in cells if len(taps) > 1]
        lines += _columns([("together", "accuracy"), *together]) if together else []
        error = max(probe["se"] for probe in probes)
        lines.append(
            f"            ridge regression on frozen stages, {probes[0]['n']} images each judged without itself; "
            f"standard error {error:.3f} at most"
        )
    return lines


def _ways(plan: TransferPlan) -> list[str]:
    rows = [("", "trains", "gain", "accuracy", "takes", "on disk")]
    own = {"strategy": plan.strategy, "cut": plan.cut, "gain": None, "affordable": True, **(plan.predicted or {})}
    for way in plan.ways or (own,):
        chosen = (way["strategy"], way["cut"]) == (plan.strategy, plan.cut)
        last = len(plan.multipliers) - 2
        some = f"head, stage {last}" if way["cut"] == last else f"head, stages {way['cut']} to {last}"
        stages = {"head": "head alone", "full": "everything"}.get(way["strategy"], some)
        gain, accuracy, seconds, n_bytes = (way.get(key) for key in ("gain", "accuracy", "seconds", "bytes"))
        rows.append(
            (
                "→" if chosen else " ",
                f"{way['strategy']}: {stages}",
                "" if gain is None or way["strategy"] == "head" else f"{100 * gain:+.1f} points",
                "" if accuracy is None else f"{accuracy[0]:.3f} to {accuracy[1]:.3f}",
                ("" if seconds is None else _duration(seconds)) + ("" if way["affordable"] else " (over budget)"),
                "" if n_bytes is None else as_size(n_bytes),
            )
        )
    return _rows(rows)


def _columns(cells: Sequence[tuple[str, str]]) -> list[str]:
    """Return pairs as two lines, the first pair being their names."""
    (first, second), *others = cells
    widths = [max(len(above), len(below)) for above, below in others]
    lines = []
    for place, name in enumerate((first, second)):
        told = "  ".join(pair[place].rjust(width) for pair, width in zip(others, widths, strict=True))
        lines.append(f"{name:<12}{told}")
    return lines


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
