"""`toolkit baseline`: what a plain net, a linear classifier or nearest neighbours make of the same photos."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.baselines.options import BaselineOptions
from toolkit.errors import SettingError

if TYPE_CHECKING:
    from toolkit.tasks.baseline_run import BaselineRun

OUT = "runs/baseline"


def train_baseline(
    data: str | None = None,
    *,
    out: str = OUT,
    model: str = "mlp",
    on: str = "pixels",
    epochs: int | None = None,
    seed: int = 0,
    resume: str | None = None,
    overwrite: bool = False,
    hidden: list[int] | None = None,
    activation: str | None = None,
    init: str | None = None,
    batchnorm: bool = False,
    dropout: float | None = None,
    loss: str | None = None,
    optimizer: str | None = None,
    lr: float | None = None,
    schedule: str | None = None,
    l1: float | None = None,
    l2: float | None = None,
    batch_size: int | None = None,
    patience: int | None = None,
    layers: str | None = None,
    precision: str | None = None,
    k: int | None = None,
    metric: str | None = None,
    search: str | None = None,
    image_size: int | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    taps: list[int] | None = None,
    val: float | None = None,
    max_pixels: int = 50_000_000,
    device: str = "auto",
    workers: int | None = None,
    pictures: bool = True,
    cache: bool = True,
    cache_dir: str | None = None,
    track: bool = False,
) -> BaselineRun:
    """Train a baseline on a folder of labelled photos, or on IDX files; the result is a run folder.

    Raises ToolkitError, one line, for whatever a person can mend; Interrupted after SIGINT or SIGTERM, once a
    checkpoint is on the disk.

    Args:
        data: the photos: DIR/CLASS/…, DIR/train/CLASS/…, a CSV of path,label[,split], or a folder of IDX files
        out: the run folder to make
        model: mlp, linear, softmax (linear, cross-entropy), svm (linear, hinge), knn, or nn (the nearest one alone)
        on: what the model sees: pixels, hog (histograms of gradients and colours), or features (of a pretrained net)
        epochs: passes over the training images; 20 by default
        seed: of the split, the first weights, dropout and the order; one seed, one result
        resume: go on with the interrupted run in this folder; no other option is taken
        overwrite: replace the run that is in the out folder
        hidden: sizes of the hidden layers (mlp); 256,128,100 by default
        activation: relu (default), leaky_relu, elu, tanh, sigmoid, identity, maxout (mlp)
        init: he, xavier, small, large, zeros; by the activation by default, zeros for a linear model
        batchnorm: normalise each hidden layer by its batch (mlp)
        dropout: share of the hidden units that is dropped (mlp); 0 by default
        loss: cross_entropy (default) or hinge, the multiclass SVM (mlp, linear)
        optimizer: adam (default), sgd, momentum, nesterov, adagrad, rmsprop
        lr: learning rate; 0.001 by default
        schedule: constant (default), step, exponential, inverse (1/t) or cosine, over all steps
        l1: λ of λ Σ |w|, by a proximal step that makes weights exactly 0
        l2: λ of λ Σ w²
        batch_size: images a step; 256 by default
        patience: stop after so many epochs without a lower validation loss, and keep the best weights
        layers: torch (default), or reference: the toolkit's own layers, for the same training curve
        precision: 32-true (default) or 64-true
        k: neighbours that vote (knn); 5 by default
        metric: distance of neighbours: l1 (default), l2, cosine
        search: exact (default), or approximate: an index, which needs the extra `ann`
        image_size: side of the square input in pixels; the images' own if all are equal and at most 64, else 32
        backbone: the pretrained network of `on features`; efficientnet_lite0 by default
        weights: a checkpoint file instead of the backbone's own weights
        taps: stages of the backbone whose pooled outputs are the features; the last one by default
        val: share of each class that validates; by default 0.2, and 0 where the data bring a labelled test split
        max_pixels: larger images are quarantined unread
        device: auto, cpu, cuda, cuda:1, mps
        workers: how many processes (on a CPU: threads) decode; by the number of images and cores by default
        pictures: false draws none in the run folder, which spares a second or two
        cache: false keeps nothing on disk
        cache_dir: where decoded images and features are kept; the platform's cache folder by default
        track: write losses, accuracies, rates and updates for TensorBoard to RUN/tensorboard; needs the extra `track`
    """
    keys = {key: value for key, value in locals().items() if key not in ("data", "out", "resume", "overwrite")}
    options = BaselineOptions(**keys)
    if resume is not None:
        if data is not None or out != OUT or overwrite or options != BaselineOptions():
            raise SettingError("resume goes on as the run's config.yaml says: give no data and no other option with it")
        from toolkit.tasks.baseline_run import resume_baseline

        return resume_baseline(resume)
    if data is None:
        raise SettingError("which photos? Give a folder: toolkit baseline DIR --out RUN (or --resume RUN)")
    from toolkit.tasks.baseline_run import start_baseline

    return start_baseline(data, out, options, overwrite=overwrite)
