"""Networks that a plan has added to, exported and loaded where this repository is not."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import MobileNetV2

from elsewhere import told_elsewhere
from finetune import batches, images, model, runs, serving, strategies
from finetune.study import Layout, Run
from tracked_study import CLASSES, image_file, make_params, write_run

RUN = Run("toy", "same_lr", 0)
FILES = [image_file(), image_file(1)]
ADAPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "lite_residual_bias": ("lite_residual", {"bias": True}),
    "spottune": ("spottune", {}),
}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[MobileNetV2, Path]]:
    """Networks that a plan has added to, all their weights random, and the models that are saved of them."""
    found = {}
    for number, (name, (plan, options)) in enumerate(ADAPTED.items()):
        root = tmp_path_factory.mktemp(name)
        write_run(root, make_params(), RUN)
        run = Layout(root).run(RUN)
        network = strategies.build_model(len(CLASSES), number, plan, options)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(number)
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))  # lite's last norms begin at zero
        runs.write_json(run / runs.RUN, runs.read_json(run / runs.RUN) | {"plan": plan, "options": options})
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, run / runs.MODEL)
        serving.save_model(run, root / "model")
        shutil.rmtree(run)
        found[name] = network.eval(), root / "model"
    return found


@pytest.fixture(scope="module")
def answers(adapted: dict[str, tuple[MobileNetV2, Path]], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Per saved model, the labels and probabilities that it gives two images elsewhere."""
    paths = {name: str(path) for name, (_, path) in adapted.items()}
    code = f"""
        files = [bytes.fromhex(text) for text in {[file.hex() for file in FILES]!r}]
        def answers(path):
            model = mlflow.pyfunc.load_model(path)
            return rows(model.predict(pd.DataFrame({{"image": files}}), params={{"top": {len(CLASSES)}}}))["data"]
        print(json.dumps({{name: answers(path) for name, path in {paths!r}.items()}}))
    """
    return told_elsewhere(code, tmp_path_factory.mktemp("elsewhere"))


def probabilities(network: MobileNetV2, file: bytes) -> Tensor:
    view = batches.evaluation_view(images.shrink(images.decode(file, "x"), 48).copy(), 32, 0.875)
    with torch.no_grad():
        return network(batches.normalise(view[None])).softmax(1)[0]


@pytest.mark.parametrize("name", ADAPTED)
def test_the_saved_model_of_an_adapted_network_answers_as_the_network(
    name: str, adapted: dict[str, tuple[MobileNetV2, Path]], answers: dict
) -> None:
    network, _ = adapted[name]
    for file, (_, _, labels, found) in zip(FILES, answers[name], strict=True):
        expected = dict(zip(CLASSES, probabilities(network, file).tolist(), strict=True))
        assert dict(zip(labels, found, strict=True)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ADAPTED)
def test_what_was_added_to_the_network_has_a_say(name: str, adapted: dict[str, tuple[MobileNetV2, Path]]) -> None:
    network, _ = adapted[name]
    bare = model.build(len(CLASSES), 0).eval()
    bare.load_state_dict(network.state_dict(), strict=False)
    assert not torch.allclose(probabilities(network, FILES[0]), probabilities(bare, FILES[0]), atol=1e-4)
