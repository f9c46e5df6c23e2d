"""The straight line of a check: data → frozen features → files, copies, labels → inputs → network → learning."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.checks.finding import FIX_LIST_COLUMNS, CheckReport, by_suspicion
from toolkit.data.manifest import TEST, VAL
from toolkit.data.scan import scan, with_sizes
from toolkit.data.split import assign_splits
from toolkit.errors import ArtifactError
from toolkit.options import Options
from toolkit.progress import say
from toolkit.tasks.check_data import data_findings
from toolkit.tasks.check_inputs import input_findings
from toolkit.tasks.check_learning import baseline_findings, transfer_findings
from toolkit.tasks.job import Job, Stopwatch, open_backbone, some_left
from toolkit.tasks.squeezed import squeezed
from toolkit.tasks.stores import open_store


def checked(
    data: str | os.PathLike[str], options: Options, *, model: str, lr: float | None, fix_list: str | None
) -> CheckReport:
    """Return what a check of a data set found; a fix list is written where one was asked for."""
    if fix_list is not None:
        _check_place(fix_list)
    manifest = scan(data, max_pixels=options.max_pixels, untrained=True)
    say(str(manifest))
    own_splits = [split for split in (VAL, TEST) if (manifest.splits == split).any()]
    with open_store(options.cache, options.cache_dir) as store:
        job = Job(options, open_backbone(options), store, Stopwatch())
        probe = job.fetch(job.all_taps, manifest)
        usable = some_left(manifest.without(probe.failures))
        usable = assign_splits(usable, val=options.val, seed=options.seed, untrained=True)
        usable = with_sizes(usable, max_pixels=options.max_pixels)
        probe = replace(probe, rows=np.arange(len(usable)), failures=())
        pictures = squeezed(usable, job)
        findings, suspects = data_findings(usable, probe, pictures, job, own_splits)
        more, others = input_findings(usable, pictures, job)
        del pictures  # and their file
        findings += more
        suspects += others
        if model == "transfer":
            findings += transfer_findings(usable, job, lr)
        else:
            findings += baseline_findings(data, usable, job, model, lr)
    report = CheckReport(tuple(findings), by_suspicion(suspects))
    if fix_list is not None:
        report.write_fix_list(Path(fix_list).expanduser())
        say(f"{len(report.suspects)} files to look at: {fix_list}")
    elif report.suspects:
        say(f"{len(report.suspects)} files to look at; --fix_list FILE.csv writes them down")
    return report


def _check_place(fix_list: str) -> None:
    """Raise ArtifactError unless a list can be written there that takes the place of nothing but an older list."""
    path = Path(fix_list).expanduser().absolute()
    if not fix_list or path.is_dir():
        raise ArtifactError(f"fix_list: {fix_list!r} is a folder; a file such as fix.csv is expected")
    if not path.parent.is_dir():
        raise ArtifactError(f"{fix_list}: its folder does not exist; make it, or choose another place")
    if not os.access(path.parent, os.W_OK):
        raise ArtifactError(f"{fix_list}: its folder cannot be written; choose another place")
    if path.exists():
        try:
            with open(path if path.is_file() else os.devnull, encoding="utf-8") as file:
                is_list = file.readline(200).strip() == ",".join(FIX_LIST_COLUMNS)
        except (OSError, ValueError):
            is_list = False
        if not is_list:
            raise ArtifactError(f"{fix_list} is there and is no fix list; it is not overwritten: choose another name")
