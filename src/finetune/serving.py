"""The servable model: image bytes in, labels and probabilities out; and its form for MLflow."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from finetune import images, runs
from finetune import model as models
from finetune.batches import evaluation_view, normalise
from finetune.errors import InputError
from finetune.strategies import build_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_BATCH = 32  # images at once, to bound the memory

# What `pyfunc_model.py` needs where it is served: the distributions that this module and its imports use.
_REQUIREMENTS = (
    "filelock",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "torch",
    "torchvision",
)


class Prediction(NamedTuple):
    """One of a model's answers."""

    label: str
    probability: float  # in [0, 1]


class Classifier:
    """A trained run that takes image files, treated as evaluation treats the test split. It runs on the CPU, in fp32.

    Attributes:
        classes: names in label order.
        run_key: of the run that it was trained in.
    """

    def __init__(self, folder: Path) -> None:
        """Load run.json and model.safetensors from `folder`.

        Raises:
            InputError: one of them is missing or unreadable, or the weights do not fit.
        """
        run = runs.read_json(folder / runs.RUN)
        self.classes: tuple[str, ...] = tuple(run["classes"])
        self.run_key: str = run["run_key"]
        self._preprocessing = run["preprocessing"]
        self._model = build_model(len(self.classes), 0, run["plan"], run["options"])
        models.load_weights(self._model, folder / runs.MODEL)
        self._layout = (
            torch.channels_last if run["training"]["memory_format"] == "channels_last" else torch.contiguous_format
        )
        self._model.eval().to(memory_format=self._layout)  # evaluation's, whose sums have its order

    def probabilities(self, files: Sequence[bytes], names: Sequence[str] = ()) -> np.ndarray:
        """Class probabilities of encoded images: float32, images x classes.

        Args:
            files: the contents of image files, in any format Pillow reads.
            names: what to call each in a message; "image 1", … if not given.

        Raises:
            InputError: one of them is no image; it is named.
        """
        names = names or [f"image {i}" for i in range(1, len(files) + 1)]
        views = (self._view(file, name) for file, name in zip(files, names, strict=True))
        answers = [np.empty((0, len(self.classes)), np.float32)]
        with torch.inference_mode():
            for _ in range(0, len(files), _BATCH):
                batch = torch.stack(list(islice(views, _BATCH)))
                answers.append(self._model(normalise(batch, self._layout)).softmax(1).numpy())
        return np.concatenate(answers)

    def predict(self, files: Sequence[bytes], top: int = 1, names: Sequence[str] = ()) -> list[list[Prediction]]:
        """The `top` most probable labels of each image, most probable first (all of them, if there are fewer).

        Raises:
            InputError: `top` is below 1, or as `probabilities`.
        """
        if top < 1:
            raise InputError(f"top: found {top}, expected at least 1 label per image")
        return [
            [Prediction(self.classes[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:top]]
            for row in self.probabilities(files, names)
        ]

    def _view(self, file: bytes, name: str) -> torch.Tensor:
        shown = self._preprocessing
        image = images.shrink(images.decode(file, name), shown["short_side"])
        # A copy, because torch warns of pixels that it could not write to, such as Pillow's.
        return evaluation_view(image.copy(), shown["image_size"], shown["crop_pct"])


def log_model(client: "MlflowClient", run: "Run", folder: Path, tags: Mapping[str, str]) -> str:
    """Send a run folder's classifier to MLflow as a model of `run`, whole or not at all.

    The client is used throughout, never mlflow's global state: another run may be active in this process.

    Returns:
        The id of the model, which is READY.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run_id = run.info.run_id
    logged = client.create_logged_model(
        run.info.experiment_id, "classifier", run_id, dict(tags), params=run.data.params, model_type="classifier"
    )
    described = Model(
        artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id
    )
    with tempfile.TemporaryDirectory() as temporary:
        save_model(folder, Path(temporary) / "model", described)
        client.log_model_artifacts(logged.model_id, str(Path(temporary) / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged.model_id


def save_model(folder: Path, path: Path, described: Any = None) -> None:
    """Write a run folder's classifier as an MLflow model in "models from code" form: nothing in it is pickled.

    The package travels along in `code_paths`, so that the model loads where this repository is not.
    Source: https://mlflow.org/docs/latest/ml/model/models-from-code

    Args:
        described: the mlflow.models.Model to fill in; a new one if None.
    """
    import mlflow.pyfunc

    package = Path(__file__).parent
    with warnings.catch_warnings():
        # The signature is written by hand; an example would only make MLflow load and run the model here.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(package / "pyfunc_model.py"),
            artifacts={name: str((folder / name).resolve()) for name in (runs.RUN, runs.MODEL)},
            code_paths=[str(package)],
            # Without the local part (+cpu, +cu130): an index has no such version.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _REQUIREMENTS],
            signature=_signature(),
            mlflow_model=described,
        )


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        Schema([ColSpec(DataType.binary, "image")]),  # over JSON: base64 text
        Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(Array(DataType.string), "labels", required=False),  # these two where top > 1
                ColSpec(Array(DataType.double), "probabilities", required=False),
            ]
        ),
        ParamSchema([ParamSpec("top", DataType.long, 1)]),
    )
