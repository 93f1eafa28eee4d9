"""Predictions and metrics by hand, from a network whose logits are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune.batches import Batches
from finetune.evaluation import Predictions, predict
from finetune.store import Split

CPU = torch.device("cpu")


class Known(nn.Module):
    """Logits from a table: the row is the grey level of the image's first pixel, as stored."""

    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = torch.tensor(table)
        self.dropout = nn.Dropout(0.9)  # shows whether evaluation mode is on
        self.frozen = nn.BatchNorm1d(len(table[0])).eval()  # one layer in evaluation mode, as a strategy may want it
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        rows = (images[:, 0, 0, 0] * 0.229 * 255 + 0.485 * 255).round().long()
        return self.dropout(self.table[rows])


def batches_of(labels: list[int], batch_size: int = 2) -> Batches:
    """Image i is of grey level i all over."""
    images = np.repeat(np.arange(len(labels), dtype=np.uint8), 16 * 16 * 3)
    index = np.array([(i * 16 * 16 * 3, 16, 16) for i in range(len(labels))], np.int64)
    return Batches(Split(images, index, np.array(labels, np.int64)), 16, batch_size, CPU, torch.contiguous_format, 1.0)


TABLE: list[list[float]] = [[0, math.log(2), 0, 0, 0, 0], [math.log(3), 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]]


def test_predictions_by_hand() -> None:
    seen = predict(Known(TABLE), batches_of([1, 4, 5]), "fp32")
    assert seen.labels.tolist() == [1, 4, 5]
    assert seen.predictions.tolist() == [1, 0, 0]
    total = sum(math.exp(k) for k in range(6))
    assert seen.confidence.tolist() == pytest.approx([2 / 7, 3 / 8, math.exp(5) / total], rel=1e-5)
    # Minus the log of the label's probability: 2 of 7, 1 of 8, 1 of total.
    assert seen.losses.tolist() == pytest.approx([math.log(7 / 2), math.log(8), math.log(total)], rel=1e-5)
    assert seen.in_top5.tolist()[::2] == [True, False]  # the last label is the least probable of six


def test_metrics_by_hand() -> None:
    seen = Predictions(
        labels=np.array([0, 1, 2, 3]),
        predictions=np.array([0, 1, 0, 0]),
        confidence=np.ones(4, np.float32),
        in_top5=np.array([True, True, True, False]),
        losses=np.array([1, 2, 3, 6], np.float32),
    )
    assert (seen.acc, seen.acc5, seen.loss) == (0.5, 0.75, 3.0)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_every_image_is_predicted_once_also_in_a_smaller_last_batch(batch_size: int) -> None:
    network = Known(TABLE)
    seen = predict(network, batches_of([1, 4, 5], batch_size), "fp32")
    assert seen.labels.tolist() == [1, 4, 5]
    assert sum(network.sizes) == 3


def test_up_to_five_classes_every_label_is_in_the_top_five() -> None:
    seen = predict(Known([[3.0, 2.0, 1.0]]), batches_of([2]), "fp32")
    assert (seen.acc, seen.acc5) == (0.0, 1.0)


def test_the_networks_modes_are_put_back_layer_by_layer() -> None:
    network = Known(TABLE).train()
    network.frozen.eval()
    predict(network, batches_of([1, 4, 5]), "fp32")
    assert network.training
    assert network.dropout.training
    assert not network.frozen.training


def test_statistics_and_gradients_are_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 16), nn.BatchNorm2d(6), nn.Flatten()).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    predict(network, batches_of([1, 4, 5]), "fp32")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_metrics_do_not_depend_on_the_batch_size() -> None:
    one, three = (predict(Known(TABLE), batches_of([1, 4, 5], size), "fp32") for size in (1, 3))
    assert np.array_equal(one.losses, three.losses)
    assert np.array_equal(one.predictions, three.predictions)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_pass_runs_in_the_precision_asked_for(precision: str, dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 16), nn.Flatten())
    outputs: list[torch.dtype] = []
    network[0].register_forward_hook(lambda module, inputs, output: outputs.append(output.dtype))
    seen = predict(network, batches_of([1, 4]), precision)
    assert outputs == [dtype]
    assert seen.losses.dtype == np.float32
