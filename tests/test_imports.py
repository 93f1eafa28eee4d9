import gc
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune import imports
from finetune.imports import uncollected

# Ends at the first import of the module named first, saying whether Python looks for garbage then.
WATCHED = """
import gc, sys
class Watch:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            print(gc.isenabled())
            sys.exit(7)
sys.meta_path.insert(0, Watch())
"""
RUN = ("--dataset", "cifar10", "--strategy", "same_lr")


@pytest.fixture(autouse=True)
def _on() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


def when_imported(module: str, code: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + code, module, *words],
        env=os.environ | {"PYTHONPATH": str(Path(imports.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    return done.stdout.strip()


def test_no_garbage_is_looked_for_within_and_again_afterwards() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_is_looked_for_again_after_a_failed_import() -> None:
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()


def test_within_another_one_nothing_changes() -> None:
    with uncollected():
        with uncollected():
            pass
        assert not gc.isenabled()


@pytest.mark.parametrize("words", [("train", *RUN), ("run", *RUN), ("evaluate", "cifar10", "same_lr", "0")])
def test_a_command_imports_pytorch_without_looking_for_garbage(words: tuple[str, ...]) -> None:
    assert when_imported("torch", "from finetune.cli import cli; cli(sys.argv[2:])", *words) == "False"


@pytest.mark.parametrize("module", ["mlflow", "sqlalchemy"])
def test_mlflow_is_imported_without_looking_for_garbage(module: str, tmp_path: Path) -> None:
    code = "from pathlib import Path; from finetune.tracking_store import connect; connect(Path(sys.argv[2]))"
    assert when_imported(module, code, str(tmp_path)) == "False"


def test_to_look_whether_mlflow_lacks_anything_no_pytorch_is_imported() -> None:
    code = "import sys, finetune.tracking, finetune.registry, finetune.workflow; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(imports.__file__).parents[1])}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_threads_that_wait_are_told_to_sleep_before_anything_heavy_is_imported() -> None:
    code = """
        import json, os, sys
        import finetune.__main__
        print(json.dumps([os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules]))
    """
    users = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    users |= {"PYTHONPATH": str(Path(imports.__file__).parents[1])}

    def told(**more: str) -> list[str | bool]:
        words = [sys.executable, "-c", textwrap.dedent(code)]
        return json.loads(subprocess.run(words, env=users | more, capture_output=True, check=True).stdout)

    assert told() == ["passive", "1000", False]
    assert told(OMP_WAIT_POLICY="active") == ["active", "1000", False]
