"""The winner of a comparison -> registered model with lineage; lookup by alias."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune import runs, study
from finetune.errors import InputError
from finetune.experiment import Experiment, data_md5, open_experiment
from finetune.params import Params
from finetune.study import Layout, Run
from finetune.tracking_store import connect, redacted, reported

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from finetune.serving import Classifier

CHAMPION = "champion"


class Registered(NamedTuple):
    """A version of a registered model, ready to predict."""

    name: str
    version: str
    classifier: "Classifier"


def model_name(dataset: str) -> str:
    return f"{dataset}-classifier"


def register(
    comparison: Mapping[str, Any], layout: Layout, params: Params, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Per data set make the winner a version of `<dataset>-classifier` and point `champion` at it. Again adds nothing.

    Returns:
        Data set -> version.

    Raises:
        InputError: the comparison lacks a data set (nothing is registered then), none has a winner, a winner is
            not in MLflow, or MLflow cannot be reached.
    """
    if lacking := [dataset for dataset in params.study.datasets if dataset not in comparison["datasets"]]:
        raise InputError(f"the comparison has no {', '.join(lacking)}; make it with `dvc repro`")
    root = study.anchor()
    winners = {dataset: comparison["datasets"][dataset]["winner"] for dataset in params.study.datasets}
    versions = {}
    with reported(root):
        experiment = open_experiment(root, params.study.name)
        for dataset, winner in winners.items():
            if winner is not None:
                run = Run(dataset, winner["strategy"], winner["seed"])
                versions[dataset] = _register(experiment, layout, run, winner["run_key"], say)
    without = ", ".join(dataset for dataset, winner in winners.items() if winner is None)
    if without and not versions:
        raise InputError(
            f"no winner to register for {without}: its runs have no validation split to choose by; set "
            "prepare.val_fraction above 0 in params.yaml and repeat the study"
        )
    if without:
        say(f"{without}: nothing to register, without a validation split there is no winner")
    return versions


def champion(dataset: str, alias: str = CHAMPION) -> Registered:
    """The version of `<dataset>-classifier` that carries `alias`.

    Raises:
        InputError: there is none; says what is registered.
    """
    root = study.anchor()
    with reported(root):
        client, uri = connect(root)
        name = model_name(dataset)
        there = _registered(client)
        if alias not in there.get(name, {}):
            listed = "; ".join(f"{n} ({', '.join(aliases) or 'no alias'})" for n, aliases in sorted(there.items()))
            raise InputError(
                f"models:/{name}@{alias}: not registered in MLflow at {redacted(uri)}; "
                f"registered: {listed or 'nothing'}; "
                "`finetune register` registers the winners of a study"
            )
        version = there[name][alias]
        return Registered(name, version, _load(client, uri, name, version))


def _register(experiment: Experiment, layout: Layout, run: Run, run_key: str, say: Callable[[str], None]) -> str:
    folder = runs.read(layout.run(run))
    if folder.run["run_key"] != run_key:
        raise InputError(
            f"comparison: its winner {run.name} is run {run_key}, but {folder.path} holds {folder.run['run_key']}; "
            "compare again with `dvc repro`"
        )
    client, there = experiment.client, experiment.find(run_key)
    model_id = experiment.model_id(there) if there else None
    if there is None or model_id is None:
        raise InputError(
            f"{run.name} (run_key {run_key}): its model is not in MLflow at {redacted(experiment.uri)}; "
            "send it with `finetune track` first"
        )
    name = model_name(run.dataset)
    if name not in _registered(client):
        client.create_registered_model(name, description=f"The best fine-tuned MobileNetV2 of {run.dataset}.")
    own = [v for v in client.search_model_versions(f"name = '{name}'") if v.run_id == there.info.run_id]
    if own:
        version = str(own[0].version)
    else:
        tags = _lineage(folder, runs.read_json(layout.evaluation(run) / runs.METRICS))
        # Not "models:/<id>": MLflow would look that up in its process-wide store, whichever that is.
        source = client.get_logged_model(model_id).artifact_location
        made = client.create_model_version(name, source, there.info.run_id, tags, model_id=model_id)
        version = str(made.version)
    moved = _registered(client)[name].get(CHAMPION) != version
    if moved:
        client.set_registered_model_alias(name, CHAMPION, version)
    news = "new version" if not own else "alias moved" if moved else "already registered"
    say(f"{name} version {version} is {run.name}, @{CHAMPION} ({news})")
    return version


def _lineage(folder: runs.RunFolder, evaluation: Mapping[str, Any]) -> dict[str, str]:
    run = folder.run
    return {
        "git_commit": str(folder.provenance["git_commit"]),
        "data_md5": data_md5(run),
        "run_key": run["run_key"],
        "strategy": run["strategy"],
        "seed": str(run["seed"]),
        "val_acc": str(folder.metrics["val"]["acc"]),
        "test_acc": str(evaluation["test"]["acc"]),
    }


def _registered(client: "MlflowClient") -> dict[str, dict[str, str]]:
    """Registered model -> alias -> version. Aliases come with the model itself only, not with a search."""
    names = [model.name for model in client.search_registered_models(max_results=1000)]
    return {name: {a: str(v) for a, v in client.get_registered_model(name).aliases.items()} for name in names}


def _load(client: "MlflowClient", uri: str, name: str, version: str) -> "Classifier":
    from mlflow.artifacts import download_artifacts

    from finetune.serving import Classifier

    with tempfile.TemporaryDirectory() as temporary:
        source = client.get_model_version_download_uri(name, version)
        path = download_artifacts(source, dst_path=temporary, tracking_uri=uri)
        return Classifier(Path(path) / "artifacts")
