"""Which weights λ prefers: nine of ten inputs repeat each other or say nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from toolkit.experiments.finding import Finding
from toolkit.reference.regularizers import l2, l2_gradient, soft_threshold

N, STRENGTH, LR, N_STEPS = 200, 0.05, 0.05, 4000
INPUTS = ("a, copy 1", "a, copy 2", "a, copy 3", "a, copy 4", "b", *(f"noise {i}" for i in range(1, 6)))


def run(seed: int = 0) -> Finding:
    """Fit y = 2a + b + noise by least squares, with no penalty, L2 and L1."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, N, 1, generator=generator, dtype=torch.float64)
    copies = a + 0.05 * torch.randn(N, 4, generator=generator, dtype=torch.float64)
    x = torch.cat([copies, b, torch.randn(N, 5, generator=generator, dtype=torch.float64)], 1)
    y = (2 * a + b).squeeze(1) + 0.3 * torch.randn(N, generator=generator, dtype=torch.float64)
    fits = {"none": _fit(x, y, "none"), "L2": _fit(x, y, "L2"), "L1": _fit(x, y, "L1")}
    zeros = {name: int((w == 0).sum()) for name, w in fits.items()}
    spread = {name: float(w[:4].std(correction=0)) for name, w in fits.items()}
    noise_gone = int((fits["L1"][5:] == 0).sum())
    one, quarters = torch.tensor([1.0, 0, 0, 0]), torch.full((4,), 0.25)
    prefers = float(l2(quarters, 1.0)) < float(l2(one, 1.0))
    return Finding(
        name="regularization",
        title="Which weights do L2 and L1 choose where the data does not care?",
        claim="L2 prefers weights that are spread out, L1 few that are large and the others 0.",
        shown=prefers and spread["L2"] < 0.5 * spread["none"] and zeros["L1"] >= 4 and zeros["L2"] == 0,
        verdict=(
            f"the four copies' weights have a std of {spread['none']:.2f} without a penalty, {spread['L2']:.3f} with "
            f"L2 and {spread['L1']:.2f} with L1; exactly 0 are {zeros['L1']} of 10 weights with L1 ({noise_gone} of "
            f"the 5 noise inputs) and {zeros['L2']} with L2; ‖w‖² prefers (¼,¼,¼,¼) to (1,0,0,0), "
            f"{float(l2(quarters, 1)):.2f} to {float(l2(one, 1)):.0f}"
        ),
        header=("input", *fits),
        rows=tuple((name, *(float(w[i]) for w in fits.values())) for i, name in enumerate(INPUTS)),
        draw=partial(_draw, {name: w.tolist() for name, w in fits.items()}),
    )


def _fit(x: Tensor, y: Tensor, penalty: str) -> Tensor:
    """Return the weights that gradient descent finds; after each step along the data loss L1 takes its proximal one."""
    w = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(N_STEPS):
        dw = 2 * x.T @ (x @ w - y) / len(y)
        if penalty == "L2":
            dw = dw + l2_gradient(w, STRENGTH)
        w = w - LR * dw
        if penalty == "L1":
            w = soft_threshold(w, LR * 2 * STRENGTH)
    return w


def _draw(fits: dict[str, list[float]], figure: Any) -> None:
    axes = figure.subplots(1, len(fits), sharex=True, sharey=True)
    for axis, (name, weights) in zip(axes, fits.items(), strict=True):
        axis.barh(INPUTS, weights, color=["tab:gray" if w == 0 else "tab:blue" for w in weights])
        for i, weight in enumerate(weights):
            if weight == 0:
                axis.text(0.03, i, "0", va="center")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title="no penalty" if name == "none" else name, xlabel="weight")
    axes[0].invert_yaxis()
