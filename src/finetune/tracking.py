"""A study's run folders -> MLflow: whatever it lacks."""

import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping

from finetune import study
from finetune.delivery import read_finished, send
from finetune.experiment import Experiment, cell, open_experiment
from finetune.params import Params
from finetune.study import Layout, Run
from finetune.tracking_store import attached_run_id, reported

_KINDS = ("runs", "fields", "epochs", "metrics", "inputs", "artifacts", "models", "ended", "retired")


def track(params: Params, layout: Layout, say: Callable[[str], None] = print) -> dict[str, int]:
    """Send to MLflow what it lacks of every run of the study; retire what is no longer in it. Again sends nothing.

    Returns:
        How many of each were sent: runs, fields (tags and parameters), epochs, metrics, inputs, artifacts, models;
        and how many runs were ended or retired.

    Raises:
        InputError: a run or evaluation of the study is missing, or MLflow cannot be reached.
    """
    sources = [read_finished(layout, run) for run in study.runs(params)]  # all of them, before anything is sent
    root, sent, kept = study.anchor(), Counter[str](), {}
    with reported(root):
        experiment = open_experiment(root, params.study.name)
        for source in sources:
            run_id, own = send(experiment, source, experiment.find(source.folder.run["run_key"]))
            kept[cell(experiment.tags(source.folder.run))] = run_id
            sent += own
            if own:
                say(f"{source.name}: sent {_listed(own)}")
        sent += _retire_others(experiment, kept)
    say(f"MLflow at {experiment.uri}: {_listed(sent) or f'has all {len(sources)} runs already, nothing to send'}")
    return {kind: sent[kind] for kind in _KINDS}


def track_run(params: Params, layout: Layout, run: Run) -> None:
    """Send what MLflow lacks of one run: into the run of `mlflow run`, if this process is in one.

    Raises:
        InputError: as `track`.
    """
    source, root = read_finished(layout, run), study.anchor()
    with reported(root):
        experiment = open_experiment(root, params.study.name)
        attached = attached_run_id()
        there = experiment.client.get_run(attached) if attached else experiment.find(source.folder.run["run_key"])
        send(experiment, source, there)


def _retire_others(experiment: Experiment, kept: Mapping[tuple[str | None, ...], str]) -> Counter[str]:
    """Take out of the comparison every run of the study but `kept`; end those whose process has died."""
    done = Counter[str]()
    for other in experiment.current():
        if other.info.run_id in kept.values():
            continue
        if other.info.status == "RUNNING":
            if _may_be_alive(other.data.tags.get("process", "")):
                continue
            experiment.client.set_terminated(other.info.run_id, "KILLED")
            done["ended"] += 1
        experiment.retire(other.info.run_id, by=kept.get(cell(other.data.tags)))
        done["retired"] += 1
    return done


def _may_be_alive(process: str) -> bool:
    """Whether the process `host:pid` may still run; on another machine there is no telling."""
    host, _, pid = process.rpartition(":")
    if host != platform.node():
        return bool(host)
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _listed(sent: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sent.items() if count)
