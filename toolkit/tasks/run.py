"""The straight line: folder → Manifest → features → plan → head → tail → scores → run folder."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.artifacts.run_folder import HISTORY, METRICS, MODEL, PLAN, START, RunFolder
from toolkit.data.manifest import VAL, Manifest
from toolkit.data.scan import scan
from toolkit.errors import ArtifactError, ToolkitError
from toolkit.evaluation.report import evaluate
from toolkit.hardware import resolve_device, resolve_precision
from toolkit.options import AUTO_BACKBONE, CUSTOM, Options
from toolkit.plan import TransferPlan
from toolkit.progress import say
from toolkit.scores import Scores
from toolkit.tasks.apart import check_apart, check_cache_apart
from toolkit.tasks.choose_backbone import DEFAULT, open_job
from toolkit.tasks.ending import diagnosis_of, file_lines, metrics_of, publish_results, score_lines
from toolkit.tasks.folds import cross_validate, in_words
from toolkit.tasks.job import Job, Stopwatch, open_backbone, plan_ahead
from toolkit.tasks.prepare import prepare, prepare_again, read_plan
from toolkit.tasks.prepared import Prepared
from toolkit.tasks.room import check_room
from toolkit.tasks.score import score
from toolkit.tasks.stores import open_store
from toolkit.training.mixing import Verdict
from toolkit.training.need_tensorboard import need_tensorboard
from toolkit.training.network import TransferNetwork
from toolkit.training.trained import TrainedModel

GIVEN = "given"  # in the config of a run whose images and labels a program gave: no folder says them again


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: where it is, what was decided, what came out."""

    path: Path
    plan: TransferPlan
    metrics: dict[str, Any]

    @property
    def model_path(self) -> Path:
        """The model folder."""
        return self.path / MODEL

    def __str__(self) -> str:
        metrics, plan = self.metrics, self.plan
        head = f"{plan.strategy} on {plan.backbone}: {metrics['train']['n']} training images"
        folds = [] if metrics["folds"] is None else [in_words(metrics["folds"])]
        verdict = [] if plan.verdict is None else [str(Verdict.from_dict(plan.verdict))]
        lines = [f"{head}, {metrics['seconds']['total']:.1f} s", *verdict, *score_lines(metrics), *folds]
        return "\n".join([*lines, *file_lines(metrics, self.path)])


def start_run(data: str | os.PathLike[str] | Manifest, out: str, options: Options, *, overwrite: bool = False) -> Run:
    """Run the whole line into a new run folder.

    Whatever can be refused without decoding an image is refused before the run begins, a cache that cannot be included:
    a mistake leaves nothing behind, and no run is overwritten for it. Other processes are kept out of the folder from
    the first check to the end of the run.
    """
    resolve_precision(options.precision, resolve_device(options.device))
    if options.track:
        need_tensorboard()
    where = Path(out).expanduser().absolute()
    if not isinstance(data, Manifest):
        check_apart(data, where)
        check_cache_apart(data, options.cache_dir)
    folder = RunFolder(where)
    with folder.claimed(overwrite=overwrite):
        clock = Stopwatch()
        with clock.part("scan"):
            manifest = data if isinstance(data, Manifest) else scan(data, max_pixels=options.max_pixels)
        named = replace(options, backbone=DEFAULT) if options.backbone == AUTO_BACKBONE else options
        backbone = open_backbone(named)
        plan = plan_ahead(manifest, named, backbone)
        source = manifest.root if isinstance(data, Manifest) else Path(data).expanduser().absolute()
        of_program = {GIVEN: True} if isinstance(data, Manifest) else {}
        with open_store(options.cache, options.cache_dir) as store:
            job = Job(named, backbone, store, clock)
            with clock.part("plan"):
                check_room(job, manifest, plan, every_stage=named is not options)
            folder.begin({"data": str(source), "out": str(where), **of_program, **options.to_dict()})
            folder.write_quarantine(manifest)  # so far; from here on the folder is known as a run's
            say(str(manifest))
            if named is not options:
                return _go(folder, manifest, open_job(options, manifest, store, clock))
            return _go(folder, manifest, job)


def resume_run(path: str | os.PathLike[str], own_backbone: Any = None) -> Run:
    """Go on with an interrupted run; a finished one is returned as it is.

    own_backbone: the modules of a run whose backbone was the user's own.
    """
    folder = RunFolder.open(path)
    folder.check_own()
    config = folder.config()
    as_read = dict(config)
    if "strategy" not in config and "model" in config:
        raise ArtifactError(f"{folder.path} is the run of a baseline; go on with it by toolkit baseline --resume")
    if folder.finished and folder.tidied:
        return _as_it_is(folder)
    if config.get(GIVEN):
        if folder.finished:
            return _as_it_is(folder)
        raise ArtifactError(f"{folder.path}: only the program that called ImageClassifier has its labels; fit it again")
    if config.get("backbone") == CUSTOM:
        if own_backbone is None and folder.finished:
            return _as_it_is(folder)
        if own_backbone is None:
            raise ArtifactError(f"{folder.path} has a backbone of your own; give it: finetune(resume=…, backbone=[…])")
        config["backbone"] = own_backbone
    elif own_backbone is not None:
        raise ArtifactError(f"{folder.path} has the backbone {config.get('backbone')}; resume it without another one")
    try:
        options = Options(**{key: value for key, value in config.items() if key not in ("data", "out")})
        data = Path(config["data"])
    except (TypeError, KeyError) as error:
        raise ArtifactError(f"{folder.path}: config.yaml is not one that a run wrote ({error})") from error
    if folder.finished:
        from toolkit.tasks.draw_again import draw_run_again

        draw_run_again(folder, data, options)
        return _as_it_is(folder)
    clock = Stopwatch()
    with clock.part("scan"):
        manifest = scan(data, max_pixels=options.max_pixels)
    with folder.held(), open_store(options.cache, options.cache_dir) as store:
        folder.check_still(as_read)
        known = read_plan(folder).backbone if (folder.path / PLAN).exists() else None
        return _go(folder, manifest, open_job(options, manifest, store, clock, known))


def _go(folder: RunFolder, manifest: Manifest, job: Job) -> Run:
    if folder.finished:  # by another process, while this one read the data
        folder.drop_checkpoints()  # the place of the lock
        return _as_it_is(folder)
    clock = job.clock
    resuming = any((folder.checkpoints / name).exists() for name in (START, "last.ckpt"))
    if resuming:
        prepared = prepare_again(folder, manifest, job)
    else:
        prepared = prepare(manifest, job)
        folder.write(PLAN, prepared.plan.to_dict())
        folder.write_quarantine(prepared.manifest)
    for remark in prepared.manifest.remarks:
        say(f"note: {remark}")
    say(str(prepared.plan))

    model, failures, plan = _train(folder, prepared, job)
    prepared = replace(prepared, plan=plan)
    folder.write(PLAN, plan.to_dict())
    manifest, predictions = score(model, prepared, failures, job)
    scores = evaluate(predictions, seed=job.options.seed)
    folds = cross_validate(prepared, job)

    with clock.part("evaluate"):
        publish_results(folder, model, predictions, manifest)
    _warn_if_worse(folder, scores)
    chosen_by_val = "nothing" if job.options.patience is None else "epoch"
    if manifest.n_scanned != prepared.manifest.n_scanned:
        raise ToolkitError("files were lost from the account: please report this")
    metrics = metrics_of(manifest, scores, clock, strategy=plan.strategy, backbone=plan.backbone)
    diagnosis = _diagnosis(folder, manifest, plan, keeps_best=chosen_by_val == "epoch")
    metrics = {**metrics, "val_chose": chosen_by_val, "folds": folds, "diagnosis": diagnosis}
    folder.write(METRICS, metrics)  # from here on the run is finished, whatever becomes of its pictures
    if job.options.pictures:
        from toolkit.tasks.pictures import Images, draw_run

        images = Images(prepared.manifest, model.preprocessing, model.max_pixels)
        draw_run(folder, model, plan, images, prepared.probe if plan.strategy == "head" else None, job.device)
    folder.drop_checkpoints()
    return Run(folder.path, prepared.plan, metrics)


def _diagnosis(folder: RunFolder, manifest: Manifest, plan: TransferPlan, *, keeps_best: bool) -> str | None:
    """Return what the course of the training says."""
    judges = None if plan.verdict is None else plan.verdict["n"] // max(1, plan.verdict["trials"])
    blended = plan.recipe is not None and bool(plan.recipe.mixup or plan.recipe.cutmix)
    n_val = len(manifest.rows(VAL))
    return diagnosis_of(folder, n_val=n_val, n_judges=judges, blended=blended, keeps_best=keeps_best)


def _as_it_is(folder: RunFolder) -> Run:
    say(f"{folder.path} is finished; nothing to do")
    return Run(folder.path, read_plan(folder), folder.read(METRICS))


def _train(folder: RunFolder, prepared: Prepared, job: Job) -> tuple[TrainedModel, dict[int, str], TransferPlan]:
    """Return the trained model, the training files that failed on the way, and the plan with what came of it."""
    plan = prepared.plan
    with job.clock.part("fit"):
        if prepared.plan.strategy == "head":
            assert prepared.chosen is not None
            spec = prepared.plan.freeze_spec()
            network = TransferNetwork(job.backbone, prepared.chosen.head, spec, taps=prepared.plan.taps)
            failures: dict[int, str] = {}
        else:
            from toolkit.tasks.find_rate import with_rate
            from toolkit.tasks.tail import train_tail

            prepared = with_rate(folder, prepared, job)
            plan = prepared.plan
            tail = train_tail(folder, prepared, job)
            network, failures = tail.network, tail.failures
            plan = replace(plan, verdict=None if tail.verdict is None else tail.verdict.to_dict())
            if tail.rate != 1:
                reason = f"training lost what the head could do, and began again with {tail.rate:g} of the rates"
                plan = replace(plan, reasons=(*(one for one in plan.reasons if one != reason), reason))
    model = TrainedModel.of(network, job.backbone, prepared.manifest.classes, job.options.max_pixels)
    return model, failures, plan


LEAST_DIFFERENCE = 1e-5  # of accuracies, of which a history has six digits


def _warn_if_worse(folder: RunFolder, scores: dict[str, Scores | None]) -> None:
    """Say so if training ended below the head that it started from, which the first row of the history tells."""
    val, history = scores["val"], folder.path / HISTORY
    if val is None or val.accuracy is None or not history.exists():
        return
    with open(history, encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file), None)
    if first is None or first["epoch"] != "0":
        return
    if float(first["val_accuracy"] or 0) - val.accuracy > LEAST_DIFFERENCE:
        say(
            f"note: training ended at {val.accuracy:.3f}, below the head it started from ({first['val_accuracy']}); "
            "take --strategy head, a smaller --lr, or --patience, which keeps the best weights"
        )
