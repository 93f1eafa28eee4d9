"""Mixed images and labels, by hand."""

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from finetune.mixing import box, correct, loss_of, mixed
from finetune.recipe import TrainingParams

LABELS = torch.arange(8)
IMAGES = torch.rand(8, 3, 10, 12, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)


def recipe(**values: float) -> TrainingParams:
    return TrainingParams.model_validate({"batch_size": 8, **values})


def test_nothing_is_mixed_unless_asked() -> None:
    images, targets = mixed(IMAGES, LABELS, recipe(), 0, 0, 0)
    assert images is IMAGES
    assert [(labels is LABELS, weight) for labels, weight in targets] == [(True, 1.0)]


def test_a_batch_of_one_image_is_left_alone() -> None:
    images, targets = mixed(IMAGES[:1], LABELS[:1], recipe(mixup=1.0), 0, 0, 0)
    assert torch.equal(images, IMAGES[:1])
    assert len(targets) == 1


@pytest.mark.parametrize("step", range(5))
def test_mixup_is_the_mean_that_its_labels_weights_tell(step: int) -> None:
    images, ((own, weight), (others, rest)) = mixed(IMAGES, LABELS, recipe(mixup=0.4), 3, 1, step)
    assert torch.equal(own, LABELS)
    assert sorted(others.tolist()) == LABELS.tolist()
    assert weight + rest == pytest.approx(1)
    assert torch.allclose(images, weight * IMAGES + rest * IMAGES[others], atol=1e-6)


@pytest.mark.parametrize("step", range(5))
def test_cutmix_pastes_a_box_and_weighs_by_its_area(step: int) -> None:
    images, ((_, weight), (others, rest)) = mixed(IMAGES, LABELS, recipe(cutmix=1.0), 3, 1, step)
    pasted = (images != IMAGES).any(1) & (others != LABELS)[:, None, None]
    assert torch.equal(torch.where(pasted[:, None], IMAGES[others], IMAGES), images)
    moved = pasted[others != LABELS]
    assert (moved == moved[0]).all(), "one box for the whole batch"
    assert moved[0].float().mean().item() == pytest.approx(rest)
    assert weight == pytest.approx(1 - rest)


def test_with_both_each_step_takes_one_of_them() -> None:
    def pasted(step: int) -> bool:
        images, ((_, _), (others, _)) = mixed(IMAGES, LABELS, recipe(mixup=1.0, cutmix=1.0), 0, 0, step)
        return bool(((images == IMAGES) | (images == IMAGES[others])).all())

    assert 5 < sum(pasted(step) for step in range(30)) < 25


def test_what_is_drawn_depends_on_seed_epoch_and_step_alone() -> None:
    torch.rand(3)
    first = mixed(IMAGES, LABELS, recipe(mixup=1.0), 1, 2, 3)[0]
    torch.rand(3)
    assert torch.equal(first, mixed(IMAGES, LABELS, recipe(mixup=1.0), 1, 2, 3)[0])
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(first, mixed(IMAGES, LABELS, recipe(mixup=1.0), *other)[0])


@pytest.mark.parametrize(
    ("area", "down", "across", "expected"),
    [
        (0.25, 0.5, 0.5, (3, 3, 8, 9)),  # 5 high, 6 wide, around (5, 6)
        (0.25, 0.0, 0.0, (0, 0, 3, 3)),
        (0.25, 0.99, 0.99, (7, 8, 10, 12)),
        (1.0, 0.5, 0.5, (0, 0, 10, 12)),
        (0.0, 0.5, 0.5, (5, 6, 5, 6)),
    ],
)
def test_a_box_is_cut_off_at_the_images_sides(
    area: float, down: float, across: float, expected: tuple[int, int, int, int]
) -> None:
    assert box(10, 12, area, down, across) == expected


def test_the_loss_of_mixed_and_smoothed_labels_is_that_of_soft_targets() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    own, others = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 0, 1, 2])
    soft = 0.7 * one_hot(own, 5) + 0.3 * one_hot(others, 5)
    soft = 0.9 * soft + 0.1 / 5
    found = loss_of(logits, ((own, 0.7), (others, 0.3)), 0.1)
    assert found.item() == pytest.approx(cross_entropy(logits, soft).item(), abs=1e-6)


def test_a_label_told_right_counts_what_it_weighs() -> None:
    logits = torch.eye(3)[[0, 1, 2]]  # tells 0, 1, 2
    targets = ((torch.tensor([0, 1, 0]), 0.75), (torch.tensor([1, 1, 2]), 0.25))
    assert correct(logits, targets).item() == pytest.approx(0.75 + 1.0 + 0.25)
