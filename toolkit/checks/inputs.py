"""Whether the network sees what its weights were trained on, and sees the same in training and in prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.backbones.normalise import Normalise
from toolkit.checks.files import count
from toolkit.checks.finding import FAIL, PASS, WARN, Finding
from toolkit.data.preprocessing import Preprocessing
from toolkit.planning.similarity import Similarity

USUAL_MEAN, USUAL_SPREAD = 1.5, (0.3, 2.0)  # of normalised channels; photographs have about 0 and 1
POSSIBLE = 4.0  # beyond, no set of images normalised for these weights can be
UNKNOWN = 0.01  # similarity; noise has 0.02 and scans of digits 0.06
BLANK = 1.0  # of 255, the standard deviation of an image that shows nothing


def input_statistics(
    pixels: Tensor,
    preprocessing: Preprocessing,
    similarity: Similarity | None = None,
    n_blank: int = 0,
    n_images: int | None = None,
) -> Finding:
    """Return how a batch, normalised as the weights want it, compares with what they were trained on.

    pixels: uint8 (n, 3, S, S), a sample of the images. Channels of photographs then have mean 0 and spread 1 or so.
    similarity: what the activations say of it, which knows the weights' own statistics. n_blank: of all `n_images`,
    those that show nothing but one colour.
    """
    if not len(pixels):
        return Finding("input_statistics", WARN, "no image could be read", "see above")
    channels = Normalise(preprocessing)(pixels).float().transpose(0, 1).flatten(1)
    means, spreads = channels.mean(1), channels.std(1, correction=0)
    told = f"normalised channels of {len(pixels)} images: mean {_list(means)}, spread {_list(spreads)}"
    if similarity is not None:
        told += f"; similarity to the network's own {similarity.value:.2f}"
    if n_blank and n_blank == n_images:
        return Finding("input_statistics", FAIL, f"all images are of one colour; {told}", "look at the files")
    off = float(means.abs().max())
    if not bool(channels.isfinite().all()) or off > POSSIBLE or float(spreads.max()) > POSSIBLE:
        advice = "mean and std are those of pixels in 0..1, as the weights were trained with"
        return Finding("input_statistics", FAIL, told, advice)
    if n_blank:
        advice = "look at them in the --fix_list"
        return Finding("input_statistics", WARN, f"nothing but one colour in {count(n_blank, 'image')}; {told}", advice)
    odd = off > USUAL_MEAN or not USUAL_SPREAD[0] <= float(spreads.min()) <= float(spreads.max()) <= USUAL_SPREAD[1]
    if odd:
        advice = "are mean and std the weights' own, and are the images as they should be?"
        return Finding("input_statistics", WARN, told, advice)
    if similarity is not None and similarity.value < UNKNOWN:
        advice = "the network has seen nothing like it; a larger --image_size may help small images"
        return Finding("input_statistics", WARN, told, advice)
    return Finding("input_statistics", PASS, told)


def is_blank(pixels: Tensor) -> Tensor:
    """Return bool (n,): whether images uint8 (n, 3, S, S) show nothing but one colour."""
    return pixels.float().std(dim=(2, 3), correction=0).amax(1) < BLANK


def predict_preprocessing(trained: Tensor, predicted: Tensor) -> Finding:
    """Return whether training and prediction make equal tensors of the same files, (n, 3, S, S) both."""
    n = len(trained)
    if trained.shape != predicted.shape or trained.dtype != predicted.dtype:
        seen = f"training makes {tuple(trained.shape)} {trained.dtype} of {n} files, prediction "
        seen += f"{tuple(predicted.shape)} {predicted.dtype}"
        return Finding("predict_preprocessing", FAIL, seen, "save the preprocessing that was trained with")
    if torch.equal(trained, predicted):
        return Finding("predict_preprocessing", PASS, f"training and prediction make equal tensors of {n} files")
    apart = float((trained.float() - predicted.float()).abs().max())
    seen = f"training and prediction differ by up to {apart:.3g} on {n} files"
    return Finding("predict_preprocessing", FAIL, seen, "save the preprocessing that was trained with")


def _list(values: Tensor) -> str:
    return " ".join(f"{value:.2f}" for value in values.tolist())
