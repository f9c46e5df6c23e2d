"""`toolkit backbones`: the networks that there are."""

from __future__ import annotations


def backbones() -> str:
    """Return a table of the backbones: name, family, parameters, stages, where the weights come from, here or not."""
    from toolkit.backbones.catalog import catalog

    rows = [("name", "family", "parameters", "stages", "weights from", "on this machine")]
    for entry in catalog():
        parameters = "" if entry.parameters_m is None else f"{entry.parameters_m:.1f} M"
        stages = "" if entry.n_stages is None else str(entry.n_stages)
        rows.append((entry.name, entry.family, parameters, stages, entry.source, "yes" if entry.is_local else "no"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
