"""The stages through the real DVC: what an edit reruns, and what it does not. The tests go on from one another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import zc.lockfile
from mlflow import MlflowClient

from dvc_checkout import ROOT, Checkout
from finetune import figures
from finetune.side_by_side import out_of_date
from finetune.workflow import _dvc_command

pytestmark = pytest.mark.dvc


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which the study has run once."""
    made = Checkout(tmp_path_factory.mktemp("dvc"))
    ran = made.ran(made.dvc("repro"))
    assert len(ran) == 2 + 2 + 1 + 3 + 6 + 6 + 2  # prepare, sheet, backbone, plan, train, evaluate, compare and report
    made.commit()
    return made


def test_a_second_repro_runs_nothing(checkout: Checkout) -> None:
    output = checkout.dvc("repro")
    assert checkout.ran(output) == []
    assert "Data and pipelines are up to date." in output


def test_a_study_waits_for_dvcs_lock_longer_than_dvc_does_by_itself(checkout: Checkout) -> None:
    command, _ = _dvc_command()
    held = zc.lockfile.LockFile(str(checkout.root / ".dvc" / "tmp" / "lock"))
    waiting = subprocess.Popen([*command, "status"], cwd=checkout.root, stdout=subprocess.DEVNULL)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(10)  # DVC by itself gives up after 3 s
    finally:
        held.close()
    assert waiting.wait(60) == 0


def test_every_run_is_in_the_comparison(checkout: Checkout) -> None:
    runs = {(r["dataset"], r["strategy"], r["seed"]) for r in checkout.comparison()["runs"]}
    assert runs == {(d, s, 0) for d in ("cifar10", "cub200") for s in ("same_lr", "slow", "from_scratch")}


def test_every_data_set_is_looked_at(checkout: Checkout) -> None:
    shown = {path.name for path in (checkout.root / "report").glob("data-*")}
    assert shown == {f"data-{d}-{name}.png" for d in ("cifar10", "cub200") for name in ("sheet", "augmented")}


def test_looking_again_reruns_nothing(checkout: Checkout) -> None:
    checkout.finetune("data", "show", "cifar10")
    assert checkout.ran(checkout.dvc("repro")) == []


def test_metrics_show_lists_every_run(checkout: Checkout) -> None:
    shown = json.loads(checkout.dvc("metrics", "show", "--json"))[""]["data"]
    assert "test" in shown["evaluations/cub200/slow/0/metrics.json"]["data"]
    assert set(shown["runs/cifar10/same_lr/0/metrics.json"]["data"]) == {"epoch", "train", "val"}


def test_params_diff_names_the_edit(checkout: Checkout) -> None:
    params = checkout.params()
    params["training"]["lr"] = 0.002
    checkout.write_params(params)
    diff = json.loads(checkout.dvc("params", "diff", "--json"))
    checkout.git("checkout", "params.yaml")
    assert diff == {"params.yaml": {"training.lr": {"old": 0.001, "new": 0.002, "diff": 0.001}}}


def test_plots_show_draws_every_run(checkout: Checkout) -> None:
    checkout.dvc("plots", "show", "-o", "drawn")
    page = (checkout.root / "drawn" / "index.html").read_text()
    for dataset in ("cifar10", "cub200"):
        for strategy in ("same_lr", "slow", "from_scratch"):
            assert f'"dataset": "{dataset}", "strategy": "{strategy}", "seed": "0"' in page


def test_plots_show_strategies_in_the_reports_colours() -> None:
    template = json.loads((ROOT / ".dvc" / "plots" / "curves.json").read_text())
    colour = template["spec"]["encoding"]["color"]
    assert "sort" in colour and colour["sort"] is None  # as the curves come, which is the study's order
    four = ("same_lr", "separate_lr", "separate_lr_as_published", "from_scratch")
    assert colour["scale"]["range"][:4] == [style.colour for style in figures.styles(four).values()]


def test_editing_a_strategys_options_reruns_its_own_runs(checkout: Checkout) -> None:
    params = checkout.params()
    params["strategies"]["slow"]["deep_scale"] = 0.2
    checkout.write_params(params)
    ran = checkout.ran(checkout.dvc("repro"))
    own = [f"{stage}@{d}-slow-0" for stage in ("evaluate", "train") for d in ("cifar10", "cub200")]
    assert ran == sorted(["compare", "report", "plan@slow", *own])


def test_a_new_plan_file_retrains_nothing(checkout: Checkout) -> None:
    new = checkout.root / "src" / "finetune" / "strategies" / "brand_new.py"
    new.write_text((new.parent / "same_lr.py").read_text())
    ran = checkout.ran(checkout.dvc("repro"))
    new.unlink()
    assert ran == ["plan@from_scratch", "plan@same_lr", "plan@slow"]


def test_editing_a_plans_file_retrains_its_variants_only(checkout: Checkout) -> None:
    plan = checkout.root / "src" / "finetune" / "strategies" / "from_scratch.py"
    plan.write_text(plan.read_text() + "\n# edited\n")
    stale = out_of_date(checkout.root, [sys.executable, "-m", "dvc"], checkout.environment())
    assert sorted(stale) == ["cifar10-from_scratch-0", "cub200-from_scratch-0"]
    ran = checkout.ran(checkout.dvc("repro"))
    assert [s for s in ran if s.startswith("train")] == ["train@cifar10-from_scratch-0", "train@cub200-from_scratch-0"]
    checkout.git("checkout", "src")
    checkout.dvc("repro")


def test_a_training_repeated_at_another_time_in_another_mlflow_run_reruns_nothing_after_it(
    checkout: Checkout, tmp_path: Path
) -> None:
    cost = checkout.root / "runs" / "cifar10" / "same_lr" / "0" / "cost.json"
    before = cost.read_bytes()
    elsewhere = f"sqlite:///{tmp_path / 'mlflow.db'}"
    checkout.dvc("repro", "-f", "-s", "train@cifar10-same_lr-0", MLFLOW_TRACKING_URI=elsewhere)
    assert cost.read_bytes() != before  # the times did change
    assert list(tracked(elsewhere).values()) == [("cifar10/same_lr/0", "true")]
    assert checkout.ran(checkout.dvc("repro")) == []


def test_dropping_a_strategy_reruns_compare_and_report_only(checkout: Checkout) -> None:
    params = checkout.params()
    params["study"]["strategies"].remove("slow")
    checkout.write_params(params)
    ran = checkout.ran(checkout.dvc("repro"))
    assert ran == ["compare", "report"]
    assert {r["strategy"] for r in checkout.comparison()["runs"]} == {"same_lr", "from_scratch"}
    assert "slow" not in (checkout.root / "report" / "report.md").read_text()


def test_two_trainings_run_at_once(checkout: Checkout) -> None:
    targets = ("train@cifar10-from_scratch-0", "train@cub200-same_lr-0")
    started = [checkout.start("repro", "-f", "-s", target) for target in targets]
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert checkout.ran(checkout.dvc("repro")) == []


def test_exp_run_sets_a_parameter_and_keeps_the_workspaces_mlflow_runs(checkout: Checkout) -> None:
    checkout.commit()
    store = f"sqlite:///{checkout.root / 'mlflow.db'}"
    before = tracked(store)
    output = checkout.dvc("exp", "run", "--temp", "-S", "training.epochs=1", "-S", "study.datasets=[cifar10]")
    assert "Ran experiment" in output
    assert not list((checkout.root / ".dvc" / "tmp" / "exps").glob("**/mlflow.db"))
    after = tracked(store)
    assert {run: after[run] for run in before} == before
    added = [after[run] for run in after.keys() - before.keys()]
    assert sorted(added) == [("cifar10/from_scratch/0", "false"), ("cifar10/same_lr/0", "false")]


def tracked(store: str) -> dict[str, tuple[str, str]]:
    """Every run in MLflow by its id: name, and whether it is current."""
    client = MlflowClient(store)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return {run.info.run_id: (run.info.run_name or "", run.data.tags["current"]) for run in found}


def test_a_store_whose_archives_are_missing_names_the_pull(checkout: Checkout) -> None:
    archives, elsewhere = checkout.root / "data" / "cub200", checkout.root / "cub200"
    archives.rename(elsewhere)
    command = [sys.executable, "-m", "finetune", "prepare", "cub200"]
    env = checkout.environment()
    done = subprocess.run(command, cwd=checkout.root, env=env, capture_output=True, text=True, check=False)
    elsewhere.rename(archives)
    assert done.returncode == 2
    assert "dvc pull data/cub200" in done.stderr
    assert "Traceback" not in done.stderr
