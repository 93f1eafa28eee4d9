from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune import data_facts, params, runs, sheets, tiles
from finetune.batches import Batches, normalise
from finetune.params import TrainingParams
from finetune.store import Store, open_store
from small_splits import channels_first, levels_apart, noise, oblong, shown, split_of
from small_store import store_of

CPU = (torch.device("cpu"), torch.contiguous_format)


@pytest.fixture
def store(toy_inputs: Path) -> Store:
    return open_store(toy_inputs / "prepared" / "toy")


def recipe_of(**settings: Any) -> TrainingParams:
    return TrainingParams(image_size=32, **settings)


def drawn(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def normalised(view: np.ndarray) -> torch.Tensor:
    return normalise(channels_first(view)[None])[0]


def shown_tiles(path: Path, side: int, rows: int, columns: int) -> list[list[bytes]]:
    """The pixels of each tile of a sheet, row by row."""
    picture = drawn(path)
    step = side + tiles.GAP
    top, left = picture.shape[0] - 12 - rows * step, picture.shape[1] - 12 - columns * step
    corners = [[(top + r * step, left + c * step) for c in range(columns)] for r in range(rows)]
    return [[picture[y : y + side, x : x + side].tobytes() for y, x in row] for row in corners]


def enlarged(image: np.ndarray, times: int) -> bytes:
    return image.repeat(times, 0).repeat(times, 1).tobytes()


@pytest.mark.parametrize("name", ["random_resized_crop", "pad_crop", "none"])
def test_the_training_views_are_what_the_first_epochs_train_on(name: Any) -> None:
    split = split_of(oblong(10))
    recipe = recipe_of(augmentation={"name": name})
    images = np.array([7, 2])
    views = sheets.training_views(split, images, recipe)
    batches = Batches(split, 32, 10, *CPU, recipe.crop_pct)
    for epoch in (0, 5):
        trained = shown(batches, recipe.augmentation, 0, epoch)
        for view, image in zip(views[epoch], images.tolist(), strict=True):
            assert levels_apart(normalised(view), trained[image]) < 1e-3


def test_the_last_view_is_that_of_evaluation() -> None:
    split = split_of(oblong(4))
    views = sheets.training_views(split, np.array([3]), recipe_of())
    [(evaluated, _)] = Batches(split, 32, 4, *CPU, 0.875).evaluation()
    assert levels_apart(normalised(views[-1, 0]), evaluated[3]) < 1e-3


def test_the_sheet_shows_stored_images_of_every_class(store: Store, tmp_path: Path) -> None:
    sheets.sample_sheet(store, "Toy", tmp_path / "sheet.png")
    split = store.split("train")
    rows = shown_tiles(tmp_path / "sheet.png", 96, 3, 9)
    for label, row in enumerate(rows):  # nine training images each
        assert set(row) == {enlarged(split.image(i), 3) for i in range(27) if split.labels[i] == label}


def test_the_augmented_sheet_shows_the_views(store: Store, tmp_path: Path) -> None:
    recipe = recipe_of(augmentation={"name": "pad_crop"}, crop_pct=1.0)
    sheets.augmented_sheet(store, "Toy", recipe, tmp_path / "augmented.png")
    split = store.split("train")
    images = {enlarged(split.image(i), 4): i for i in range(27)}
    rows = shown_tiles(tmp_path / "augmented.png", 128, 6, 8)
    assert len({row[0] for row in rows}) == 6
    for stored, *views in rows:
        expected = sheets.training_views(split, np.array([images[stored]]), recipe)[:, 0]
        assert views == [enlarged(view, 4) for view in expected]


def test_of_a_fraction_the_augmented_sheet_shows_what_is_trained_on(store: Store, tmp_path: Path) -> None:
    recipe = recipe_of(augmentation={"name": "pad_crop"})
    sheets.write(store, "Toy", tmp_path, recipe, fraction=0.25)
    part = data_facts.train_part(store, 0.25)
    images = {enlarged(part.image(i), 4): i for i in range(len(part))}
    for stored, first, *_ in shown_tiles(tmp_path / "augmented.png", 128, 6, 8):
        assert first == enlarged(sheets.training_views(part, np.array([images[stored]]), recipe)[0, 0], 4)


def test_the_same_store_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        sheets.write(store, "Toy", tmp_path / name, recipe_of())
    for file in (data_facts.SHEET, data_facts.AUGMENTED, data_facts.FACTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_without_a_recipe_the_augmented_sheet_stays_with_what_it_shows(store: Store, tmp_path: Path) -> None:
    with_recipe = sheets.write(store, "Toy", tmp_path, recipe_of())
    before = (tmp_path / data_facts.AUGMENTED).read_bytes()
    assert sheets.write(store, "Toy", tmp_path) == with_recipe
    assert with_recipe["seen"]["image_size"] == 32
    assert (tmp_path / data_facts.AUGMENTED).read_bytes() == before


def test_the_augmented_sheet_of_another_store_is_removed(store: Store, tmp_path: Path) -> None:
    sheets.write(store, "Toy", tmp_path, recipe_of())
    runs.write_json(tmp_path / data_facts.FACTS, data_facts.facts(store, "Toy") | {"digest": "other", "seen": {}})
    assert "seen" not in sheets.write(store, "Toy", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [data_facts.FACTS, data_facts.SHEET]


@pytest.mark.parametrize("classes", [1, 10, 11, 200])
def test_a_sheet_has_ten_classes_at_most(classes: int, tmp_path: Path) -> None:
    store = store_of(tmp_path, {"train": [(n, 2, 2) for n in range(classes)] * 3, "test": [(0, 2, 2)]}, classes)
    sheets.sample_sheet(store, "Toy", tmp_path / "sheet.png")
    height = Image.open(tmp_path / "sheet.png").height
    assert (height - 66) / (tiles.GAP + 112) == min(classes, 10)


def test_a_class_without_training_images_and_a_strange_name_are_no_obstacle(tmp_path: Path) -> None:
    store = store_of(tmp_path, {"train": [(0, 40, 4), (0, 4, 40)], "test": [(1, 2, 2)]})
    store.meta["classes"][:] = ["$\\frac{1$", "x" * 300]
    written = sheets.write(store, "A title that goes on and on " * 9, tmp_path / "out", recipe_of())
    assert written["splits"]["train"]["per_class"]["counts"] == [2, 0]


@pytest.mark.filterwarnings("error")
def test_letters_that_no_font_has_are_drawn_as_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_fonts", lambda: ("DejaVu Sans",))
    assert tiles.drawable("汉字 Ünïcödé_ξ\udce9") == r"\u6c49\u5b57 Ünïcödé_ξ\udce9"
    monkeypatch.setattr(tiles, "_fonts", lambda: ("DejaVu Sans", "cmr10"))
    assert tiles.drawable("ξ") == "ξ"
    store = store_of(tmp_path, {"train": [(0, 4, 4), (1, 4, 4)], "test": [(1, 2, 2)]})
    store.meta["classes"][:] = ["汉字", "caf\udce9"]
    sheets.write(store, "标题", tmp_path / "out", recipe_of())


def test_a_font_that_is_installed_is_fallen_back_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_FONTS", ("No Such Font", "STIXSizeOneSym"))  # which Matplotlib brings
    tiles._fonts.cache_clear()
    fonts = tiles._fonts()
    tiles._fonts.cache_clear()
    assert fonts == ("DejaVu Sans", "STIXSizeOneSym")


def test_a_large_picture_has_few_colours_and_a_white_background(tmp_path: Path) -> None:
    sheet = tiles.Tiles(4, 9, 96)
    for place, image in enumerate(noise(36, 96, 96)):
        sheet.tile(place // 9, place % 9, image)
    sheet.save(tmp_path / "sheet.png")
    picture = Image.open(tmp_path / "sheet.png")
    assert picture.mode == "P"
    assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_a_recipe_is_the_data_sets_own(tiny_content: Mapping[str, Any]) -> None:
    own = {"datasets": {"toy": {"training": {"image_size": 64}}}}
    recipe = sheets.recipe_of(params.parse({**tiny_content, **own}), "toy")
    assert (recipe.image_size, recipe.augmentation.name) == (64, "pad_crop")
