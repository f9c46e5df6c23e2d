"""The straight line of a check: data → frozen features → files, copies, labels → inputs → network → learning."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.checks.finding import CheckReport, by_suspicion
from toolkit.data.manifest import VAL
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
    if fix_list is not None and not Path(fix_list).expanduser().absolute().parent.is_dir():
        raise ArtifactError(f"{fix_list}: its folder does not exist; make it, or choose another place")
    manifest = scan(data, max_pixels=options.max_pixels, untrained=True)
    say(str(manifest))
    own_split = bool((manifest.splits == VAL).any())
    with open_store(options.cache, options.cache_dir) as store:
        job = Job(options, open_backbone(options), store, Stopwatch())
        probe = job.fetch(job.all_taps, manifest)
        usable = some_left(manifest.without(probe.failures))
        usable = assign_splits(usable, val=options.val, seed=options.seed, untrained=True)
        usable = with_sizes(usable, max_pixels=options.max_pixels)
        probe = replace(probe, rows=np.arange(len(usable)), failures=())
        with squeezed(usable, job) as pictures:
            findings, suspects = data_findings(usable, probe, pictures, job, own_split=own_split)
            more, others = input_findings(usable, pictures, job)
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
