from pathlib import Path

import numpy as np
import pytest
import torch

from elsewhere import told_elsewhere
from finetune import batches, images, model, runs, serving
from finetune.errors import InputError
from finetune.serving import Classifier
from finetune.study import Layout, Run
from tracked_study import CLASSES, as_text, image_file, make_params, write_run

RUN = Run("toy", "same_lr", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    write_run(root, make_params(), RUN)
    return Layout(root).run(RUN)


def test_probabilities_are_those_of_the_evaluation_view(folder: Path) -> None:
    file = image_file()
    shrunk = images.shrink(images.decode(file, "x"), 48)
    view = batches.evaluation_view(shrunk.copy(), 32, 0.875)
    network = model.build(len(CLASSES), seed=0).eval()  # the weights that the run holds
    with torch.no_grad():
        expected = network(batches.normalise(view[None])).softmax(1).numpy()
    np.testing.assert_array_equal(Classifier(folder).probabilities([file]), expected)


def test_predictions_are_sorted_and_limited(folder: Path) -> None:
    classifier, file = Classifier(folder), image_file(1)
    row = classifier.probabilities([file])[0]
    best, second = np.argsort(-row)[:2]
    assert classifier.predict([file], top=2) == [
        [(CLASSES[best], pytest.approx(row[best])), (CLASSES[second], pytest.approx(row[second]))]
    ]


def test_more_labels_than_classes_are_all_classes(folder: Path) -> None:
    ranked = Classifier(folder).predict([image_file()], top=9)[0]
    assert sorted(p.label for p in ranked) == CLASSES
    assert sum(p.probability for p in ranked) == pytest.approx(1.0)


def test_batches_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, files = Classifier(folder), [image_file(seed) for seed in range(5)]
    singly = np.concatenate([classifier.probabilities([file]) for file in files])
    monkeypatch.setattr(serving, "_BATCH", 2)
    np.testing.assert_allclose(classifier.probabilities(files), singly, atol=1e-6)


def test_no_images_give_no_answers(folder: Path) -> None:
    assert Classifier(folder).predict([]) == []


def test_top_must_be_positive(folder: Path) -> None:
    with pytest.raises(InputError, match="top: found 0"):
        Classifier(folder).predict([image_file()], top=0)


def test_a_broken_image_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"^b\.jpg: not an image"):
        Classifier(folder).predict([image_file(), b"no image"], names=["a.jpg", "b.jpg"])


def test_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / runs.RUN).write_bytes((folder / runs.RUN).read_bytes())
    with pytest.raises(InputError, match=r"model\.safetensors: no such file"):
        Classifier(tmp_path)


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    serving.save_model(folder, path)
    return path


@pytest.fixture(scope="module")
def elsewhere(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the saved model answers in a process that cannot import this repository."""
    code = f"""
        from mlflow.pyfunc import scoring_server
        model = mlflow.pyfunc.load_model({str(saved)!r})
        import finetune
        files = [bytes.fromhex({image_file().hex()!r}), bytes.fromhex({image_file(1).hex()!r})]
        body = json.dumps({{
            "dataframe_split": {{"columns": ["image"], "data": [[{as_text(image_file())!r}]]}}, "params": {{"top": 2}}
        }})
        served = scoring_server.invocations(body, "application/json", model, model.metadata.get_input_schema())
        print(json.dumps({{
            "package": finetune.__file__,
            "bytes": rows(model.predict(pd.DataFrame({{"image": files}}))),
            "text": rows(model.predict(pd.DataFrame({{"image": [{as_text(image_file())!r}]}}), params={{"top": 2}})),
            "http": json.loads(served.response),
        }}))
    """
    return told_elsewhere(code, tmp_path_factory.mktemp("elsewhere"))


def test_the_saved_model_runs_on_its_own_copy_of_the_package(elsewhere: dict, saved: Path) -> None:
    assert Path(elsewhere["package"]).is_relative_to(saved)


def test_the_saved_model_answers_as_the_classifier(elsewhere: dict, folder: Path) -> None:
    expected = [[p.label, p.probability] for [p] in Classifier(folder).predict([image_file(), image_file(1)])]
    assert elsewhere["bytes"]["columns"] == ["label", "probability"]
    assert [row[0] for row in elsewhere["bytes"]["data"]] == [row[0] for row in expected]
    assert [row[1] for row in elsewhere["bytes"]["data"]] == [pytest.approx(row[1], abs=1e-12) for row in expected]


def test_the_saved_model_takes_base64_text_and_a_number_of_labels(elsewhere: dict, folder: Path) -> None:
    [ranked] = Classifier(folder).predict([image_file()], top=2)
    [row] = elsewhere["text"]["data"]
    assert elsewhere["text"]["columns"] == ["label", "probability", "labels", "probabilities"]
    assert row[0] == ranked[0].label
    assert row[2] == [p.label for p in ranked]
    assert row[3] == pytest.approx([p.probability for p in ranked], abs=1e-12)


def test_the_saved_model_answers_over_http(elsewhere: dict, folder: Path) -> None:
    [ranked] = Classifier(folder).predict([image_file()], top=2)
    [answer] = elsewhere["http"]["predictions"]
    assert answer["labels"] == [p.label for p in ranked]
    assert answer["probability"] == pytest.approx(ranked[0].probability)


def test_the_saved_model_pins_what_an_index_has(saved: Path) -> None:
    lines = (saved / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.partition('+')[0]}" in lines
    assert all("==" in line and "+" not in line for line in lines)


def test_nothing_in_the_saved_model_is_pickled(saved: Path) -> None:
    assert not [path for path in saved.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
