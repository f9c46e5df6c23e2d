"""Killed at any moment and run again, an extraction ends in the bytes of an undisturbed one; several share one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.features.small import files_below, photos
from toolkit.storage import TEMPORARY_PREFIX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# What a process of its own does: small shards, slow enough that kills fall between and within them. From its second
# file on it waits for the file `gate`, if there is to be one.
SCRIPT = """\
import hashlib, json, os, sys, time
import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)
from toolkit.backbones.backbone import Backbone
from toolkit.data.preprocessing import Preprocessing
from toolkit.data.scan import scan
from toolkit.features import contents, passes
from toolkit.features.request import Request
from toolkit.features.store import FeatureStore

photos, cache, views, workers, rows, delay = *sys.argv[1:3], *map(int, sys.argv[3:6]), float(sys.argv[6])
gate, written = sys.argv[7], []
passes.SHARD_IMAGES = 2
contents.SETTLED_AFTER_NS = -1
publish = passes.write_shard


def slowly(*arguments):
    path = publish(*arguments)
    print("published", path.name, file=sys.stderr, flush=True)
    time.sleep(delay)
    written.append(path)
    while gate and len(written) > 1 and not os.path.exists(gate):
        time.sleep(0.01)
    return path


passes.write_shard = slowly
if __name__ == "__main__":
    torch.manual_seed(0)
    stages = tuple(nn.Sequential(nn.Conv2d(3, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(4))
    request = Request(Backbone("small", stages, Preprocessing(36, 32)), (1, 3), 2, views=views)
    manifest = scan(photos)
    print("begin", file=sys.stderr, flush=True)
    stored = FeatureStore(cache).fetch(request, manifest, np.arange(rows), workers=workers)
    total = hashlib.sha256()
    for name, column in sorted(stored.columns.items()):
        tensor = column.take(np.arange(len(stored) * views))
        total.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    print(json.dumps({"n_computed": stored.n_computed, "rows": stored.rows.tolist(), "sum": total.hexdigest()}))
"""
N, VIEWS = 70, 3


class Work:
    """A folder of photographs, one of them unreadable, the script, and what an undisturbed run gives."""

    def __init__(self, folder: Path) -> None:
        self.photos = folder / "photos"
        manifest = photos(self.photos, N)
        manifest.file(10).write_bytes(manifest.file(10).read_bytes()[:-200])  # its header is good
        self.script = folder / "script.py"
        self.script.write_text(SCRIPT)
        self.answer = self.finish(folder / "whole")
        assert self.answer["n_computed"] == (N - 1) * VIEWS and len(self.answer["rows"]) == N - 1
        self.files = files_below(folder / "whole")
        assert len(self.files) > 20

    def start(
        self, cache: Path, workers: int = 0, rows: int = N, delay: float = 0.0, gate: Path | str = ""
    ) -> subprocess.Popen[str]:
        """Start an extraction of the first `rows` images in a process group of its own."""
        words = [str(self.photos), str(cache), *map(str, (VIEWS, workers, rows, delay, gate))]
        root = str(Path(__file__).parents[2])
        return subprocess.Popen(
            [sys.executable, str(self.script), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        )

    def finish(self, cache: Path, **settings) -> dict:
        """Run an extraction to its end and return its answer."""
        process = self.start(cache, **settings)
        answer, said = process.communicate()
        assert process.returncode == 0, said
        return json.loads(answer)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    return Work(tmp_path_factory.mktemp("kills"))


def kill_all(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def read_until(process: subprocess.Popen[str], marker: str, count: int = 1) -> None:
    """Read stderr up to the line that is the `count`th to begin with `marker`, or to its end."""
    for line in process.stderr:
        count -= line.startswith(marker)
        if not count:
            return


def n_finished(cache: Path) -> int:
    return len([path for path in cache.glob("models/*/*/*.safetensors") if not path.name.startswith(TEMPORARY_PREFIX)])


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_again_and_again(work, tmp_path, workers):
    """Two times five kills: two of each once something new is written, the others at moments of the whole run."""
    chance = random.Random(workers)
    in_the_middle = 0
    for cache in (tmp_path / "one", tmp_path / "other"):
        before = 0
        for number in range(5):
            process = work.start(cache, workers, delay=0.02)
            read_until(process, "published" if number < 2 else "begin")
            time.sleep(0.0 if number < 2 else chance.uniform(0.0, 0.5))
            kill_all(process)
            finished = n_finished(cache)
            assert finished >= before, "what was finished stays finished"
            in_the_middle += before < finished < len(work.files)
            before = finished
        answer = work.finish(cache, workers=workers)
        assert {**answer, "n_computed": 0} == {**work.answer, "n_computed": 0}
        assert answer["n_computed"] < work.answer["n_computed"] or not before
        assert files_below(cache) == work.files
        assert not [path for path in cache.rglob("*") if path.name.startswith((".", TEMPORARY_PREFIX))]
    assert in_the_middle >= 4


def test_what_is_killed_in_the_middle_of_writing_leaves_nothing(work, tmp_path):
    """As if the kill had come just before a file was whole: in every folder that is written."""
    cache = tmp_path / "cache"
    process = work.start(cache, delay=0.01)
    read_until(process, "published", 3)
    kill_all(process)
    folders = {path.parent for path in (cache / "models").rglob("*.safetensors")}
    (model,) = (cache / "models").iterdir()
    (cache / "contents").mkdir(exist_ok=True)
    for folder in (*folders, model, model / "another recipe", cache / "contents"):
        folder.mkdir(exist_ok=True)
        (folder / f"{TEMPORARY_PREFIX}0123456789ab-0123.safetensors").write_bytes(b"half")
    answer = work.finish(cache)
    assert answer["sum"] == work.answer["sum"] and files_below(cache) == work.files
    assert not list(cache.rglob(f"{TEMPORARY_PREFIX}*"))


def test_several_processes_share_one_extraction(work, tmp_path):
    processes = [work.start(tmp_path / "cache", workers=0) for _ in range(8)]
    answers = []
    for process in processes:
        answer, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        answers.append(json.loads(answer))
    assert sum(answer["n_computed"] for answer in answers) == work.answer["n_computed"]
    assert {answer["sum"] for answer in answers} == {work.answer["sum"]}
    assert files_below(tmp_path / "cache") == work.files


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_holder_of_the_lock_holds_up_nobody(work, tmp_path, workers):
    """Killed alone: processes that decode for it may live on for a few seconds."""
    cache = tmp_path / "cache"
    holder = work.start(cache, workers, gate=tmp_path / "never")
    read_until(holder, "published", 2)
    waiting = [work.start(cache) for _ in range(3)]
    for process in waiting:
        read_until(process, "another process is computing")
    os.kill(holder.pid, signal.SIGKILL)
    begin = time.monotonic()
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in waiting]
    seconds = time.monotonic() - begin
    os.killpg(holder.pid, signal.SIGKILL) if workers and alive(holder.pid) else None
    holder.communicate()
    assert seconds < 60
    computed = sorted(answer["n_computed"] for answer in answers)
    assert computed[:2] == [0, 0] and 0 < computed[2] < work.answer["n_computed"]
    assert {answer["sum"] for answer in answers} == {work.answer["sum"]}
    assert files_below(cache) == work.files


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_reader_is_not_held_up_by_a_writer(work, tmp_path):
    """While one process computes, others that want what is stored neither wait nor fail nor disturb it."""
    cache = tmp_path / "cache"
    few = work.finish(cache, rows=8)
    gate = tmp_path / "gate"
    writer = work.start(cache, gate=gate)
    read_until(writer, "published", 2)
    for _ in range(2):
        reader = work.start(cache, rows=8)
        answer, said = reader.communicate(timeout=60)
        assert json.loads(answer) == {**few, "n_computed": 0} and "waiting" not in said
    assert writer.poll() is None, "it is still at work"
    gate.touch()
    answer, said = writer.communicate(timeout=60)
    assert writer.returncode == 0 and json.loads(answer)["sum"] == work.answer["sum"], said
