"""A study's MLflow experiment: how its runs are described and found, and the address of its comparison."""

import json
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from finetune.errors import InputError
from finetune.params_file import flat
from finetune.study import CELL
from finetune.tracking_store import attached_run_id, connect, redacted, store_lock, workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

SIDE = "outside_dvc"  # the tag of such runs
_DATABASES = ("sqlite", "mysql", "postgresql", "mssql")
_DEFAULT_EXPERIMENT = "0"  # where `mlflow run` puts runs when no experiment is named
_INVENTED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # as MLflow names a run that nobody named
# What the UI shows under the comparison's address: it reads such a state from the experiment's tags. Without it, the
# charts show the first ten runs only, and the curves last.
_VIEW = "study"
_SECTIONS = ("val", "train", "test", "lr", "best", "best/val", "cost")  # prefixes of metrics, in the charts' order
_VIEW_STATE = {
    "searchFilter": "tags.current = 'true'",
    "orderByKey": "tags.`mlflow.runName`",
    "orderByAsc": True,
    "runsHiddenMode": "SHOW_ALL",
    "compareRunCharts": [],  # the UI adds a chart per metric to the section of its prefix
    "compareRunSections": [
        {"uuid": f"study-{name}", "name": name, "display": True, "isReordered": False} for name in _SECTIONS
    ],
    "isAccordionReordered": True,  # or the UI sorts the sections by name
}


@dataclass(frozen=True)
class Experiment:
    """An open experiment of a tracking store."""

    client: "MlflowClient"
    uri: str
    id: str
    study: str
    aside: bool  # its runs never take the place of the study's own: those of DVC's temporary experiments, …
    side: bool = False  # for runs outside DVC, which lie beside the study's own

    def tags(self, run: Mapping[str, Any]) -> dict[str, str]:
        """The tags of the run that `run` (the content of run.json) describes."""
        keys = ("dataset", "strategy", "seed", "plan", "run_key", "edition")
        own = {key: str(run[key]) for key in keys}
        own |= {"study": self.study, "current": "false" if self.aside else "true"}
        return own | ({SIDE: "true"} if self.side else {})

    def beside(self, run: Mapping[str, Any]) -> "Experiment":
        """The same for `run` (the content of run.json) outside DVC: aside where the study's own run of its cell is."""
        place = cell({key: str(run[key]) for key in CELL})
        own = any(cell(other.data.tags) == place and SIDE not in other.data.tags for other in self.current())
        return replace(self, side=True, aside=self.aside or own)

    def find(self, run_key: str) -> "Run | None":
        """The latest run that carries `run_key`: the study's own, or for runs outside DVC such a one."""
        found = self.client.search_runs(
            [self.id], f"tags.run_key = '{run_key}'", order_by=["attributes.start_time DESC"]
        )
        return next((run for run in found if (SIDE in run.data.tags) == self.side), None)

    def get(self, run_id: str) -> "Run | None":
        """The run of that id, in whichever experiment; None where this server never had it."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def current(self) -> "list[Run]":
        """The study's runs that are tagged as current: what its comparison shows."""
        wanted = f"tags.study = '{self.study}' and tags.current = 'true'"
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([self.id], wanted, max_results=1000, page_token=token)
            found += page
            if not (token := page.token):
                return found

    def create(
        self, run: Mapping[str, Any], started_ms: int | None = None, more_tags: Mapping[str, str] = MappingProxyType({})
    ) -> "Run":
        """A new run for the training that `run` (the content of run.json) describes; RUNNING until it is ended."""
        return self.client.create_run(self.id, started_ms, {**self.tags(run), **more_tags}, run_name(run))

    def complete(self, there: "Run", run: Mapping[str, Any], more_tags: Mapping[str, str]) -> int:
        """Send the tags and parameters of `run` that the run `there` lacks; returns how many."""
        from mlflow.entities import Param, RunTag

        tags = {**self.tags(run), **more_tags}
        if self.aside and not self.side and "current" in there.data.tags:
            del tags["current"]  # a temporary experiment that repeats the workspace's training leaves its run current
        lacking_tags = [RunTag(k, v) for k, v in tags.items() if there.data.tags.get(k) != v]
        lacking = [Param(k, v) for k, v in parameters(run).items() if k not in there.data.params]
        if lacking_tags or lacking:
            self.client.log_batch(there.info.run_id, params=lacking, tags=lacking_tags)
        if "superseded_by" in there.data.tags and not self.aside:
            self.client.delete_tag(there.info.run_id, "superseded_by")
        if _INVENTED_NAME.fullmatch(there.info.run_name or ""):
            self.client.update_run(there.info.run_id, name=run_name(run))
        return len(lacking_tags) + len(lacking)

    def model_id(self, run: "Run") -> str | None:
        """The run's servable model, if it has one whose files have all arrived."""
        outputs = self.client.get_run(run.info.run_id).outputs
        for output in outputs.model_outputs if outputs else []:
            if self.client.get_logged_model(output.model_id).status == "READY":
                return output.model_id
        return None

    def retire(self, run_id: str, by: str | None = None) -> None:
        """Take a run out of the comparison, naming the run that took its place, if one did."""
        self.client.set_tag(run_id, "current", "false")
        if by:
            self.client.set_tag(run_id, "superseded_by", by)


def cell(tags: Mapping[str, str]) -> tuple[str | None, ...]:
    """What only one run at a time is current for: (data set, strategy, seed), as tags."""
    return tuple(tags.get(name) for name in CELL)


def run_name(run: Mapping[str, Any]) -> str:
    return f"{run['dataset']}/{run['strategy']}/{run['seed']}"


def parameters(run: Mapping[str, Any]) -> dict[str, str]:
    """What the run resolved to, flat: training.lr, training.schedule.name, prepare.short_side, strategy.<option>, …

    The prefixes also keep clear of `mlflow run -P`, which logs what it is given as strings, under bare names.
    """
    sections = {
        "strategy": {"plan": run["plan"], **run["options"]},
        "training": run["training"],
        "prepare": run["prepare"],
        "data": {"fraction": run["fraction"]},
        "backbone": run["backbone"],
    }
    return {key: str(value) for key, value in flat(sections)}


def epoch_metrics(row: Mapping[str, float | None], ended: float | None = None) -> "list[Metric]":
    """A row of curves.csv as metrics of step epoch; what the row has no value for is left out.

    Args:
        ended: when the epoch did, of time.time(); None for now.
    """
    from mlflow.entities import Metric

    now = int((time.time() if ended is None else ended) * 1000)
    step = int(row["epoch"] or 0)
    values = {key: value for key, value in row.items() if key != "epoch" and value is not None}
    return [Metric(key, float(value), now, step) for key, value in values.items() if not math.isnan(value)]


def data_md5(run: Mapping[str, Any]) -> str:
    """The md5 of the data set's archive; `archive=md5, …` where there are several."""
    md5 = run["data_md5"]
    return next(iter(md5.values())) if len(md5) == 1 else ", ".join(f"{name}={md5[name]}" for name in sorted(md5))


def open_experiment(root: Path, study: str) -> Experiment:
    """The experiment `finetune-<study>`, made if need be; under `mlflow run`, the one that it was told.

    Raises as `connect` does.
    """
    client, uri = connect(root)
    home = workspace(root)
    here = Path.cwd()
    # In a temporary experiment of DVC's its stages run in a folder of their own, though DVC_ROOT names the workspace.
    aside = home != root or workspace(here) != here
    with store_lock(root):
        return Experiment(client, uri, _experiment_id(client, uri, home, study), study, aside)


def ui_address(server: str, experiment_id: str) -> str:
    """Where the UI of `server`, such as http://127.0.0.1:5000, charts every current run and curve of the experiment."""
    query = urlencode({"viewStateShareKey": _VIEW, "compareRunsMode": "CHART"})
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def _experiment_id(client: "MlflowClient", uri: str, home: Path, study: str) -> str:
    told = os.environ.get("MLFLOW_EXPERIMENT_ID", _DEFAULT_EXPERIMENT)
    if attached := attached_run_id():
        id_ = client.get_run(attached).info.experiment_id
    elif told != _DEFAULT_EXPERIMENT:
        id_ = told
    else:
        id_ = _named(client, f"finetune-{study}", uri, home)
    found = client.get_experiment(id_)
    if found.lifecycle_stage == "deleted":
        raise InputError(
            f"MLflow at {redacted(uri)}: experiment {found.name} is deleted; restore it with "
            f"`mlflow experiments restore --experiment-id {id_}`"
        )
    tag, state = f"mlflow.sharedViewState.{_VIEW}", json.dumps(_VIEW_STATE)
    if found.tags.get(tag) != state:
        client.set_experiment_tag(id_, tag, state)
    return id_


def _named(client: "MlflowClient", name: str, uri: str, home: Path) -> str:
    """The id of the experiment of that name, made if need be."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    # A server knows where its artifacts go; with a bare database MLflow would take the current folder.
    bare = uri.partition("://")[0].partition("+")[0] in _DATABASES
    try:
        return client.create_experiment(name, (home / "mlartifacts").as_uri() if bare else None)
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another machine was faster
            return found.experiment_id
        raise
