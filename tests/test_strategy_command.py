"""`finetune strategy`: what is printed, and what is refused in one sentence."""

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from finetune import strategies
from finetune.cli import cli

BACKBONE = 2_223_872  # parameters below the head


@pytest.fixture(autouse=True)
def _own_sigterm() -> Iterator[None]:
    """Each command sets a handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a params.yaml of CIFAR-10 (lr 1e-3, 2 epochs)."""
    tiny["study"]["datasets"] = ["cifar10"]
    tiny["datasets"] = {"cifar10": {}, "cub200": {"training": {"lr": 0.5}}}
    tiny["strategies"]["slow"] = {"plan": "separate_lr", "last_blocks": 0, "training": {"optimizer": {"name": "sgd"}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finetune(*words: str) -> Result:
    return CliRunner().invoke(cli, ("strategy", *words), prog_name="finetune")


def said(*words: str) -> list[str]:
    result = finetune(*words)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def refusal(*words: str) -> str:
    result = finetune(*words)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    return line.removeprefix("finetune: ")


def _line(lines: list[str], first: str) -> list[str]:
    """The cells of the last line that begins with that word."""
    return [line.split() for line in lines if line.split()[:1] == [first]][-1]


def test_list_on_a_narrow_terminal_says_what_a_plan_is_beneath_it(folder: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    source = str(Path(strategies.__path__[0]).parents[1])
    with subprocess.Popen(
        [sys.executable, "-m", "finetune", "strategy", "list"],
        cwd=folder,
        env=environment | {"PYTHONPATH": source},
        stdout=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError), open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123  ends with an error
            while part := terminal.read(4096):
                shown += part
    lines = shown.decode().replace("\r\n", "\n").splitlines()
    assert process.returncode == 0
    assert max(map(len, lines)) <= 80
    at = next(i for i, line in enumerate(lines) if line.startswith("l2_sp "))
    assert lines[at + 1] == "  Li et al. 2018, arXiv 1802.01483: L2-SP: weights are pulled towards where they"


def test_list_has_a_row_per_plan() -> None:
    lines = said("list")
    assert [line.split()[0] for line in lines] == ["plan", *strategies.names()]


def test_a_row_has_what_is_trained_of_100_classes() -> None:
    row = _line(said("list"), "separate_lr")
    assert row[1:7] == [f"{BACKBONE + 128_100:,}", "100.0%", "head,", "last,", "deep", "Howard"]
    assert " ".join(row[6:]).startswith("Howard and Ruder 2018, arXiv 1801.06146 Separate learning rates by depth:")


def test_classes_can_be_told() -> None:
    assert _line(said("list", "--classes", "10"), "same_lr")[1] == f"{BACKBONE + 12_810:,}"


def test_many_groups_are_counted_and_phases_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.model import BLOCKS
    from finetune.strategies.plan import Group, Phase, Plan, tensors_of

    def plan(model: Any) -> Plan:
        groups = tuple(Group(block, tensors_of(model, [block])) for block in BLOCKS)
        return Plan("pretrained", (Phase(groups, 0.5), Phase(groups, 0.5)))

    monkeypatch.setattr("finetune.strategies.same_lr.plan", plan)
    assert "  20: features.0 … classifier; 2 phases  " in next(line for line in said("list") if "same_lr " in line)


def test_list_needs_no_params(folder: Path) -> None:
    (folder / "params.yaml").unlink()
    assert len(said("list")) == 1 + len(strategies.names())


def test_variants_are_listed_below_with_their_own_settings() -> None:
    lines = said("list", "--variants")
    _, *rows = lines[lines.index("") + 1 :]
    assert [row.split()[0] for row in rows] == ["same_lr", "separate_lr", "from_scratch", "slow"]
    assert " ".join(rows[-1].split()).endswith("separate_lr last_blocks: 0, training.optimizer.name: sgd")


def test_show_is_the_audit_by_group() -> None:
    lines = said("show", "separate_lr")
    assert lines[1].startswith("plan separate_lr (last_blocks: 5, last_scale: 0.6, deep_scale: 0.4, decay: True")
    assert lines[1].endswith("), from pretrained weights")
    assert "phase 1 of 1, epochs 1 to 2" in lines
    # five last blocks: 75.6 % of the backbone
    assert _line(lines, "last") == [
        "last",
        "features.14–18",
        "39",
        "1,681,344",
        "all",
        "0.6",
        "0.0006",
        "0.0001",
        "train",
    ]
    assert _line(lines, "head") == ["head", "classifier", "2", "12,810", "all", "1", "0.001", "0.0001", "–"]
    assert lines[-1] == f"{BACKBONE + 12_810:,} parameters trained, 0 frozen"


def test_show_tells_phases_and_what_is_frozen() -> None:
    lines = said("show", "same_lr", "--set", "training.freeze_epochs=1")
    assert [line for line in lines if line.startswith("phase")] == ["phase 1 of 2, epoch 1", "phase 2 of 2, epoch 2"]
    assert _line(lines, "waiting")[2:] == ["156", f"{BACKBONE:,}", "frozen", "–", "–", "–", "eval"]
    assert f"12,810 parameters trained, {BACKBONE:,} frozen" in lines
    assert lines[-1] == f"in any phase: {BACKBONE + 12_810:,} parameters trained; 0 frozen throughout"


def test_a_group_of_which_a_part_is_fixed_tells_how_much_is_trained() -> None:
    row = _line(said("show", "same_lr", "--set", "training.bn=eval"), "all")
    assert row[:2] == ["all", "features.0–18,"]
    # 17,056 channels of BatchNorm, a weight and a bias each
    assert row[4:6] == [f"{BACKBONE + 12_810:,}", f"{BACKBONE + 12_810 - 2 * 17_056:,}"]


def test_what_a_phase_adds_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from finetune.strategies import same_lr

    plain = same_lr.plan

    def plan(model: Any) -> Any:
        made = plain(model)
        phase = replace(made.phases[0], penalty=lambda _: None, scales=lambda *_: {})
        return replace(made, phases=(phase,))

    monkeypatch.setattr(same_lr, "plan", plan)
    assert (
        "phase 1 of 1, epochs 1 to 2; a penalty is added to the loss; LR scales are measured anew each epoch"
    ) in said("show", "same_lr")


def test_rates_that_are_measured_as_the_run_goes_are_told_as_such() -> None:
    lines = said("show", "surgical", "--set", "strategies.surgical={auto: true}")
    assert lines[1] == "plan surgical (auto: True, batches: 4), from pretrained weights"
    assert _line(lines, "features.0")[4:] == ["all", "measured", "measured", "0.0001", "train"]
    assert _line(lines, "head")[4:] == ["all", "1", "0.001", "0.0001", "–"]


def test_an_exact_solve_has_neither_optimizer_nor_rate() -> None:
    own = "strategies.exact={plan: last_layer, solver: lbfgs, training: {epochs: 1, augmentation: {name: none}}}"
    lines = said("show", "exact", "--set", own)
    assert "recipe of cifar10: L-BFGS; weight decay 0.0001; 1 epoch; augmentation none" in lines
    assert _line(lines, "head")[4:] == ["all", "–", "–", "0.0001", "–"]


def test_the_recipe_is_of_the_data_set_that_is_named() -> None:
    lines = said("show", "slow", "--dataset", "cub200")
    words = "recipe of cub200: SGD with Nesterov momentum 0.9; lr 0.5; schedule exponential, 0.9 an epoch; "
    words += "weight decay 0.0001; 2 epochs; batches of 9; augmentation pad_crop"
    assert lines[3] == words
    assert _line(lines, "deep")[-3:] == ["0.2", "0.0001", "train"]
    assert _line(lines, "head")[3] == f"{200 * 1281:,}"


def test_the_classes_are_the_prepared_stores(folder: Path) -> None:
    store = folder / "prepared" / "cifar10"
    store.mkdir(parents=True)
    (store / "meta.json").write_text('{"classes": ["a", "b", "c"]}')
    assert _line(said("show", "same_lr"), "all")[4] == f"{BACKBONE + 3 * 1281:,}"


def test_classes_that_only_a_store_would_tell_are_asked_for() -> None:
    own = ("--set", "datasets.mine={reader: class_folders}", "--dataset", "mine")
    assert refusal("show", "same_lr", *own) == (
        "mine: how many classes it has is found when it is prepared; give --classes, or make its store with "
        "`dvc repro -s prepare@mine`"
    )
    assert _line(said("show", "same_lr", *own, "--classes", "5"), "all")[4] == f"{BACKBONE + 5 * 1281:,}"


def test_the_picture_is_drawn(folder: Path) -> None:
    lines = said("show", "from_scratch", "--picture", "out/blocks.png")
    assert lines[-1] == "out/blocks.png: drawn"
    assert (folder / "out" / "blocks.png").read_bytes().startswith(b"\x89PNG")


def test_another_kind_of_picture_is_refused() -> None:
    assert refusal("show", "same_lr", "--picture", "a.svg") == "--picture: found a.svg, expected the name of a .png"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("show", "sam_lr"),
            "strategy 'sam_lr' is neither a variant in params.yaml nor a plan; did you mean 'same_lr'?",
        ),
        (
            ("show", "same_lr", "--dataset", "cub"),
            "data set 'cub' has no entry under datasets in params.yaml; did you ",
        ),
        (
            ("list", "--classes", "1"),
            "invalid value for '--classes': 1 is not in the range x>=2; see `finetune strategy",
        ),
        (("lst",), "`finetune strategy` has no command 'lst'; did you mean 'list'? known: list, show"),
    ],
)
def test_what_is_wrong_is_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    assert refusal(*words).startswith(sentence)
