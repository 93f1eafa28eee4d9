"""A study's run folders -> MLflow: whatever it lacks."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune import data_facts, runs, study
from finetune.delivery import Finished, read_finished, send
from finetune.errors import InputError
from finetune.experiment import Experiment, cell, open_experiment
from finetune.params import Params
from finetune.process_name import may_be_alive
from finetune.store import open_store
from finetune.study import CELL, Layout, Run
from finetune.tracking_store import attached_run_id, redacted, reported

_KINDS = ("runs", "fields", "epochs", "metrics", "inputs", "artifacts", "models", "ended", "retired")
# Beside a whole run outside DVC: which run it is, and which in MLflow.
_NOTE = "side_run.json"


def track(params: Params, layout: Layout, say: Callable[[str], None] = print) -> dict[str, int]:
    """Send to MLflow what it lacks of every run of the study; retire what is no longer in it. Again sends nothing.

    Runs of the study outside DVC are sent too, and leave the study's own in their place. Where none of the study's
    own is made yet, they alone are.

    Returns:
        How many of each were sent: runs, fields (tags and parameters), epochs, metrics, inputs, artifacts, models;
        and how many runs were ended or retired.

    Raises:
        InputError: a run or evaluation of the study is missing, or MLflow cannot be reached.
    """
    root, sent, kept, own = study.anchor(), Counter[str](), {}, study.runs(params)
    beside = list(_side_runs(root, params.study.name, say))
    begun = any(layout.run(run).exists() for run in own)
    # All of them, before anything is sent.
    sources = [read_finished(layout, run) for run in own] if begun or not beside else []

    def count(source: Finished, news: Counter[str], where: str = "") -> None:
        sent.update(news)
        if news:
            say(f"{source.name}{where}: sent {_listed(news)}")

    with reported(root):
        experiment = open_experiment(root, params.study.name)
        for source in sources:
            run_id, news = send(experiment, source, experiment.find(source.folder.run["run_key"]))
            kept[cell(experiment.tags(source.folder.run))] = run_id
            count(source, news)
        for folder, note, source in beside:
            count(source, _send_side_run(experiment, folder, note, source), f" in {folder}")
        if sources:
            sent += _retire_others(experiment, kept)
    total = _listed(sent) or f"has all {len(sources) + len(beside)} runs already, nothing to send"
    say(f"MLflow at {redacted(experiment.uri)}: {total}")
    return {kind: sent[kind] for kind in _KINDS}


def track_run(params: Params, layout: Layout, run: Run) -> None:
    """Send what MLflow lacks of one run outside DVC: into the run of `mlflow run`, if this process is in one.

    Raises whatever MLflow raises where the store cannot be reached.

    Raises:
        InputError: the run or its evaluation is missing.
    """
    _draw_sheets(params, layout, run)
    source = read_finished(layout, run)
    experiment = open_experiment(study.anchor(), params.study.name).beside(source.folder.run)
    attached = attached_run_id()
    there = experiment.get(attached) if attached else experiment.find(source.folder.run["run_key"])
    run_id, _ = send(experiment, source, there)
    note_side_run(params, layout, run, run_id)


def _draw_sheets(params: Params, layout: Layout, run: Run) -> None:
    """Draw beside a run outside DVC what it was trained on, if its store is still there."""
    from finetune import sheets  # PyTorch is needed only now

    try:
        store = open_store(layout.store(run.dataset))
        title, recipe = study.dataset_of(params, run.dataset).title, params.training_for(run.dataset, run.strategy)
        folder, fraction = data_facts.folder(layout.root, run.dataset), params.datasets[run.dataset].fraction
        sheets.write(store, title, folder, recipe, fraction)
    except InputError:
        return


def note_side_run(params: Params, layout: Layout, run: Run, run_id: str | None) -> None:
    """Note that a run outside DVC is whole, so that `track` sends what MLflow lacks of it.

    Args:
        run_id: of the run in MLflow that is its own, if there is one.
    """
    names = {"dataset": run.dataset, "strategy": run.strategy, "seed": run.seed}
    runs.write_json(layout.root / _NOTE, {"study": params.study.name, **names, "run_id": run_id})


def _side_runs(root: Path, name: str, say: Callable[[str], None]) -> Iterator[tuple[Path, dict[str, Any], Finished]]:
    """The whole runs outside DVC that are of the study `name`: folder, note, content. A broken one is passed over."""
    for path in sorted((root / ".finetune" / "runs").glob(f"*/{_NOTE}")):
        try:
            note = runs.read_json(path)
            if note["study"] == name:
                yield path.parent, note, read_finished(Layout(path.parent), Run(*(note[key] for key in CELL)))
        except InputError as error:
            say(f"{path.parent}: passed over, it is not whole ({error})")


def _send_side_run(experiment: Experiment, folder: Path, note: Mapping[str, Any], source: Finished) -> Counter[str]:
    """Into the run that it had while it was trained, wherever that is; else beside the study's own."""
    run = source.folder.run
    there = experiment.get(note["run_id"]) if note["run_id"] else None
    if there is not None and there.info.lifecycle_stage == "deleted":
        return Counter()
    side = (replace(experiment, id=there.info.experiment_id) if there else experiment).beside(run)
    there = there or side.find(run["run_key"])
    if there is not None and "current" in there.data.tags:
        side = replace(side, aside=there.data.tags["current"] == "false")  # as whoever retired it left it
    run_id, news = send(side, source, there)
    if run_id != note["run_id"]:
        runs.write_json(folder / _NOTE, {**note, "run_id": run_id})
    return news


def _retire_others(experiment: Experiment, kept: Mapping[tuple[str | None, ...], str]) -> Counter[str]:
    """Take out of the comparison every run of the study but `kept`; end those whose process has died."""
    done = Counter[str]()
    for other in experiment.current():
        if other.info.run_id in kept.values():
            continue
        if other.info.status == "RUNNING":
            if may_be_alive(other.data.tags.get("process", "")):
                continue
            experiment.client.set_terminated(other.info.run_id, "KILLED")
            done["ended"] += 1
        experiment.retire(other.info.run_id, by=kept.get(cell(other.data.tags)))
        done["retired"] += 1
    return done


def _listed(sent: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sent.items() if count)
