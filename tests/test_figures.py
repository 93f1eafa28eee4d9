import io
import itertools

import numpy as np
import pytest
from PIL import Image

from finetune import figures

LOOKS = figures.styles(["same_lr", "from_scratch"])
TITLES = {"toy": "Toy", "other": "Other"}
BLUE, BLACK = (0, 68, 136), (0, 0, 0)


def _rows(dataset="toy", strategy="same_lr", seeds=(0, 1), val=0.5):
    return [
        {
            "dataset": dataset,
            "strategy": strategy,
            "seed": seed,
            "epoch": epoch,
            "train/acc": 0.2 * epoch,
            "train/loss": 2.0 / epoch,
            "val/acc": None if val is None else val * epoch / 2,
            "val/loss": None if val is None else 1.5 / epoch,
        }
        for seed in seeds
        for epoch in (1, 2)
    ]


def _pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)


def _share(path, colour):
    return (_pixels(path) == colour).all(axis=1).mean()


def test_a_strategy_keeps_its_look_in_any_study():
    other = figures.styles(["l2_sp", "from_scratch", "same_lr"])
    assert {name: other[name] for name in LOOKS} == LOOKS


def test_no_two_strategies_look_alike():
    names = ["same_lr", *(f"strategy {i}" for i in range(30)), "from_scratch"]
    assert len(set(figures.styles(names).values())) == len(names)


def test_the_first_eight_strategies_differ_in_colour_and_in_marker():
    styles = figures.styles([f"strategy {i}" for i in range(8)]).values()
    assert len({style.colour for style in styles}) == len({style.marker for style in styles}) == 8


def test_markers_of_one_colour_are_not_alike():
    alike = [set("oh8H"), set("Dd"), set("P+"), set("Xx")]
    markers: dict[str, set[str]] = {}
    for style in figures.styles([f"strategy {i}" for i in range(24)]).values():
        markers.setdefault(style.colour, set()).add(style.marker)
    assert all(len(own) == 3 for own in markers.values())
    assert not [own for own in markers.values() for family in alike if len(own & family) > 1]


def test_the_four_of_the_original_report_differ_in_greyscale():
    names = ["same_lr", "separate_lr", "separate_lr_as_published", "from_scratch"]
    pixels = [
        Image.new("RGB", (1, 1), style.colour).convert("L").getpixel((0, 0)) for style in figures.styles(names).values()
    ]
    levels = sorted(pixels)
    assert min(b - a for a, b in itertools.pairwise(levels)) > 30  # of 255


def test_curves_draw_each_strategy_in_its_colour(tmp_path):
    rows = _rows() + _rows(strategy="from_scratch", val=0.1)
    figures.curves(rows, "acc", LOOKS, TITLES, tmp_path / "acc.png")
    assert _share(tmp_path / "acc.png", BLUE) > 0.001


def test_curves_without_that_strategy_lack_its_colour(tmp_path):
    figures.curves(_rows(strategy="from_scratch"), "acc", LOOKS, TITLES, tmp_path / "acc.png")
    assert _share(tmp_path / "acc.png", BLUE) == 0


def test_curves_of_more_data_sets_are_more_panels(tmp_path):
    figures.curves(_rows(), "loss", LOOKS, TITLES, tmp_path / "one.png")
    figures.curves(_rows() + _rows("other"), "loss", LOOKS, TITLES, tmp_path / "two.png")
    one, two = (Image.open(tmp_path / name) for name in ("one.png", "two.png"))
    assert two.width > 1.2 * one.width


def test_curves_without_validation_draw_less(tmp_path):
    for name, val in (("with.png", 0.5), ("without.png", None)):
        figures.curves(_rows(val=val), "acc", LOOKS, TITLES, tmp_path / name)
    assert 0 < _share(tmp_path / "without.png", BLUE) < _share(tmp_path / "with.png", BLUE)


def test_seeds_that_differ_leave_a_band(tmp_path):
    same, apart = _rows(), _rows()
    apart[-1]["val/acc"] = 0.1
    for name, rows in (("same.png", same), ("apart.png", apart)):
        figures.curves(rows, "acc", LOOKS, TITLES, tmp_path / name)
    tint = (209, 220, 232)  # the blue at 18 % over white
    near = [
        (abs(_pixels(tmp_path / name).astype(int) - tint) <= 2).all(axis=1).sum() for name in ("same.png", "apart.png")
    ]
    assert near[1] > near[0] + 1000


def _many(n, val=0.5):
    names = [f"strategy {i}" for i in range(n)]
    return [row for name in names for row in _rows(strategy=name, val=val)], figures.styles(names)


def test_more_than_eight_strategies_are_shared_out_to_panels(tmp_path):
    for n in (8, 9):
        rows, looks = _many(n)
        figures.curves(rows, "acc", looks, TITLES, tmp_path / f"{n}.png")
    eight, nine = (Image.open(tmp_path / f"{n}.png") for n in (8, 9))
    assert nine.width > 1.2 * eight.width


@pytest.mark.parametrize("val", [0.5, None])
def test_behind_a_part_are_the_others_in_grey(tmp_path, val):
    rows, looks = _many(9, val)
    for row in rows[-4:]:  # the last strategy's, in the second part; alone where it is
        row["val/acc" if val else "train/acc"] = 0.9
    figures.curves(rows, "acc", looks, TITLES, tmp_path / "nine.png")
    image = np.asarray(Image.open(tmp_path / "nine.png").convert("RGB")).astype(int)
    first_part = image[: image.shape[0] // 2, : image.shape[1] // 2]
    assert (abs(first_part - 221) <= 4).all(axis=2).sum(axis=1).max() > 400  # a level line


@pytest.mark.parametrize(("strategy", "left"), [("strategy 3", True), ("strategy 4", False)])  # four and five
def test_each_strategy_is_in_colour_in_one_part(tmp_path, strategy, left):
    rows, looks = _many(9)
    looks = {name: figures.Style("#004488" if name == strategy else "#000000", "o") for name in looks}
    figures.curves(rows, "acc", looks, TITLES, tmp_path / "parts.png")
    image = np.asarray(Image.open(tmp_path / "parts.png").convert("RGB"))
    columns = np.nonzero((image == BLUE).all(axis=2))[1]
    assert (columns < image.shape[1] / 2).all() if left else (columns > image.shape[1] / 2).all()


def test_a_picture_needs_data(tmp_path):
    with pytest.raises(AssertionError):
        figures.curves([], "acc", LOOKS, TITLES, tmp_path / "none.png")


def test_the_same_data_give_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        figures.curves(_rows(), "acc", LOOKS, TITLES, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_run_curves_with_an_empty_validation(tmp_path):
    nan = float("nan")
    for name, val in (("with.png", 0.4), ("without.png", nan)):
        epochs = [{"epoch": 1.0, "train/acc": 0.5, "train/loss": 1.0, "val/acc": val, "val/loss": val}]
        figures.run_curves(epochs, "toy", tmp_path / name)
    assert 0 < _share(tmp_path / "without.png", BLUE) < _share(tmp_path / "with.png", BLUE)


def _confusion(tmp_path, labels, predictions, classes):
    path = tmp_path / "confusion.png"
    figures.confusion_matrix(np.array(labels), np.array(predictions), classes, path)
    return path


def test_confusion_shares_are_of_the_true_class(tmp_path):
    # class a: always right; b: never, always taken for a. The full blue of 100 % fills two of four cells.
    path = _confusion(tmp_path, [0, 0, 1, 1], [0, 0, 0, 0], ["a", "b"])
    full = (8, 48, 107)  # the end of Matplotlib's Blues
    image = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = np.nonzero((image == full).all(axis=2))
    plot = columns < image.shape[1] * 0.75  # leave out the colour bar
    height, width = np.ptp(rows[plot]), np.ptp(columns[plot])
    assert height > 1.8 * width  # one column of two cells


def test_confusion_of_many_classes_is_drawn(tmp_path):
    labels = list(range(200))
    path = _confusion(tmp_path, labels, labels, [f"class {i}" for i in labels])
    assert Image.open(io.BytesIO(path.read_bytes())).width > 600


def test_confusion_leaves_a_class_without_images_blank(tmp_path):
    path = _confusion(tmp_path, [0, 0], [0, 0], ["a", "b"])
    blue_row_end = (247, 251, 255)  # the start of Blues: 0 %
    # only the true class a has a 0 % cell; were b's row drawn, there would be three of them
    share = _share(path, blue_row_end)
    full = _share(path, (8, 48, 107))
    assert 0.8 < share / full < 1.2
