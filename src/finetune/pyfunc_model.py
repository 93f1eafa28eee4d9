"""What MLflow runs to load the servable model; nothing else imports it ("models from code")."""

import base64
import binascii
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from finetune import runs
from finetune.errors import InputError
from finetune.serving import Classifier


class ServedClassifier(PythonModel):
    """`Classifier` as a pyfunc: a column `image` of file contents in, a row of answers per image out."""

    def load_context(self, context: PythonModelContext) -> None:
        self._classifier = Classifier(Path(context.artifacts[runs.RUN]).parent)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify the images of the column `image`: bytes, or base64 text.

        Returns:
            Columns label and probability of the most probable class; with `params={"top": k}`, k > 1, also labels
            and probabilities: lists of the k most probable.

        Raises:
            InputError: an image is neither, or cannot be read.
        """
        top = int((params or {}).get("top", 1))
        files = [_contents(image, f"image {i}") for i, image in enumerate(model_input["image"], 1)]
        answers = self._classifier.predict(files, top)
        columns = {
            "label": [best[0].label for best in answers],
            "probability": [best[0].probability for best in answers],
        }
        if top > 1:
            columns["labels"] = [[p.label for p in ranked] for ranked in answers]
            columns["probabilities"] = [[p.probability for p in ranked] for ranked in answers]
        return pd.DataFrame(columns, index=model_input.index)


def _contents(image: Any, name: str) -> bytes:
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    try:
        return base64.b64decode(image, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InputError(
            f"{name}: found {type(image).__name__}, expected an image file's bytes, or base64 text of them"
        ) from None


set_model(ServedClassifier())
