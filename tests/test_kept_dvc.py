"""Through the real DVC: an edit that no store depends on keeps it. The tests go on from one another."""

import json
from pathlib import Path

import pytest

from dvc_checkout import Checkout

pytestmark = pytest.mark.dvc
STAGE = "prepare@cifar10"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose one store is prepared."""
    made = Checkout(tmp_path_factory.mktemp("kept"), ("cifar10",))
    assert made.ran(made.dvc("repro", "-s", STAGE)) == [STAGE]
    return made


def edited(checkout: Checkout, section: str, **values: object) -> None:
    params = checkout.params()
    params[section].update(values)
    checkout.write_params(params)


def pixels(checkout: Checkout) -> Path:
    return checkout.root / "prepared" / "cifar10" / "trainval.u8"


def test_a_fraction_keeps_the_store(checkout: Checkout) -> None:
    before = pixels(checkout).stat().st_ino
    edited(checkout, "datasets", cifar10={"fraction": 0.5, "training": {"epochs": 1}})
    output = checkout.dvc("repro", "-s", STAGE)
    assert checkout.ran(output) == [STAGE]
    assert "prepared/cifar10: kept" in output
    assert pixels(checkout).stat().st_ino == before
    assert checkout.ran(checkout.dvc("repro", "-s", STAGE)) == []


def test_another_setting_makes_it_anew(checkout: Checkout) -> None:
    edited(checkout, "prepare", val_fraction=0.5)
    output = checkout.dvc("repro", "-s", STAGE)
    assert checkout.ran(output) == [STAGE]
    assert "kept" not in output
    assert json.loads((pixels(checkout).parent / "meta.json").read_text())["prepare"]["val_fraction"] == 0.5


def test_a_store_that_was_damaged_is_made_anew(checkout: Checkout) -> None:
    pixels(checkout).write_bytes(b"")
    output = checkout.dvc("repro", "-s", STAGE)
    assert checkout.ran(output) == [STAGE]
    assert "kept" not in output
    assert "36 images as they were written" in checkout.finetune("store", "check")


def test_other_code_makes_it_anew(checkout: Checkout) -> None:
    code = checkout.root / "src" / "finetune" / "images.py"
    code.write_text(code.read_text() + "\n# edited\n")
    output = checkout.dvc("repro", "-s", STAGE)
    assert checkout.ran(output) == [STAGE]
    assert "kept" not in output
