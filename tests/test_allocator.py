"""Freed memory stays with a process of our own, and with nobody else's."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

GLIBC = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"
COUNT_FAULTS = """
import resource, sys, torch
from toolkit.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
for number in range(60):
    if number == 30:  # glibc tries some places first
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(40 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(word: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, word],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.skipif(not GLIBC, reason="glibc's allocator alone")
def test_large_blocks_are_given_out_again_without_page_faults() -> None:
    kept, faults = run("kept")
    assert kept == "True"
    as_it_is = int(run("as it is")[1])
    assert as_it_is >= 30 * 20, "every block begins with faults: 20 where pages are of 2 MB, 10,240 where of 4 KB"
    assert int(faults) < 0.1 * as_it_is


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}, {"LD_PRELOAD": "/nowhere/libjemalloc.so"}],
    ids=lambda environment: next(iter(environment)),
)
def test_what_the_user_has_set_stays(environment) -> None:
    assert run("kept", **environment)[0] == "False"
