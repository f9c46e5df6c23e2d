"""Anonymous memory of a fetch does not grow with the number of images; mapped files do not count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")]

SCRIPT = """\
import json, sys, threading, time
from pathlib import Path
import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)
from toolkit.backbones.backbone import Backbone
from toolkit.data.manifest import Manifest
from toolkit.data.preprocessing import Preprocessing
from toolkit.features.request import Request
from toolkit.features.store import FeatureStore

root, cache, n, views = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def anonymous_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))


peak = 0


def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous_kb())


def peak_of(fetch):
    global peak, done
    before = peak = anonymous_kb()
    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    result = fetch()
    done.set()
    watcher.join()
    return result, (peak - before) / 1024


torch.manual_seed(0)
stages = tuple(nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for c in (3, 8))
request = Request(Backbone("small", stages, Preprocessing(8, 8)), (1,), 1, views=views)
manifest = Manifest(root, ("a",), tuple(f"{i}.bmp" for i in range(n)), np.zeros(n, np.int64), np.zeros(n, np.int8))
store = FeatureStore(cache)
store.fetch(request, manifest, np.arange(64))  # what is loaded once is not counted
cold, cold_mb = peak_of(lambda: store.fetch(request, manifest))
warm, warm_mb = peak_of(lambda: store.fetch(request, manifest))
assert (cold.n_computed, warm.n_computed) == ((n - 64) * views, 0)


def read_all():
    for start in range(0, n, 256):
        positions = np.arange(start, min(n, start + 256))
        assert torch.isfinite(warm.inputs(positions, views - 1).at_cut).all() and len(warm.pooled(positions)[:])


read_mb = peak_of(read_all)[1]
print(json.dumps([cold_mb, warm_mb, read_mb]))
"""


def write_images(folder: Path, n: int) -> None:
    """Write 8 × 8 bitmaps by hand: a header and 192 bytes that differ."""
    folder.mkdir()
    header = b"BM" + (246).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    header += (40).to_bytes(4, "little") + (8).to_bytes(4, "little") * 2 + (1).to_bytes(2, "little")
    header += (24).to_bytes(2, "little") + bytes(24)
    for number in range(n):
        pixels = (number.to_bytes(4, "little") * 48)[:192]
        (folder / f"{number}.bmp").write_bytes(header + pixels)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    few, many, views = 4000, 12000, 4
    write_images(tmp_path / "images", many)
    (tmp_path / "script.py").write_text(SCRIPT)
    found = {}
    for n in (few, many):
        words = [str(tmp_path / "images"), str(tmp_path / f"cache{n}"), str(n), str(views)]
        answer = subprocess.run(
            [sys.executable, str(tmp_path / "script.py"), *words],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert answer.returncode == 0, answer.stderr
        found[n] = json.loads(answer.stdout)
    stored = many * views * 4 * (8 * 8 * 8 + 8) / 2**20
    assert stored > 90, "far more than what may be kept in memory"
    for few_mb, many_mb in zip(found[few], found[many], strict=True):
        assert many_mb < few_mb + 20, found  # what the allocator keeps differs from run to run
