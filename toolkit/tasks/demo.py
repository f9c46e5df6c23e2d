"""`toolkit demo`: the main job on data that ships with a dependency."""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import ArtifactError
from toolkit.progress import say

OUT, PHOTOS = Path("runs/demo"), Path("runs/demo-digits")
IMAGE_SIZE_PX = 96  # the scans have 8 × 8 pixels; more shows the network nothing new
N_SHOWN = 5
SCANS = "[0-9][0-9][0-9][0-9].png"  # what `write_digits` calls them


def demo() -> str:
    """Write scikit-learn's 1,797 digit scans as an image folder, train on it into runs/demo, predict a few files.

    Needs no network. Returns the lines to print. Raises ArtifactError where runs/demo has a run on other photos.
    """
    _check_own_run()
    photos = write_digits(PHOTOS)
    say(f"$ toolkit finetune {PHOTOS} --image_size {IMAGE_SIZE_PX} --out {OUT} --overwrite")
    from toolkit.tasks.finetune import finetune
    from toolkit.tasks.predict import predict

    run = finetune(str(photos), out=str(OUT), image_size=IMAGE_SIZE_PX, overwrite=True)
    shown = [str(min((photos / str(digit)).glob(SCANS))) for digit in range(N_SHOWN)]  # whatever else lies there
    say(f"$ toolkit predict {OUT} {' '.join(shown)}")
    lines = [f"{r['path']}: {r['label']} ({r['probability']:.3f})" for r in predict(str(OUT), shown)]
    return "\n".join(
        [str(run), "", *lines, "", "Now with a folder of your own, one sub-folder a class:", _next_command()]
    )


def _check_own_run() -> None:
    """Raise ArtifactError where a run that somebody else made would be overwritten, which nobody has asked for."""
    from toolkit.artifacts.run_folder import CONFIG, RunFolder

    if not (OUT / CONFIG).is_file():
        return
    data = RunFolder.open(OUT).config().get("data")
    if Path(str(data)).parts[-len(PHOTOS.parts) :] != PHOTOS.parts:  # wherever this folder was then
        raise ArtifactError(f"{OUT} holds a run on {data}, which the demo would replace; move it, or start elsewhere")


def write_digits(folder: Path) -> Path:
    """Write the digits as PNG files folder/DIGIT/NNNN.png, 8 × 8 grey, and return the folder."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (values, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        grey = np.round(values * (255 / 16)).astype(np.uint8)
        Image.fromarray(grey).save(place / f"{number:04d}.png")
    return folder


def _next_command() -> str:
    return "  toolkit finetune PHOTOS --out runs/mine"
