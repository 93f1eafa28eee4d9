"""Published top-1 accuracy of MobileNetV2 1.0 at 224 px, to stand beside ours.

All of it belongs to the official archives; on any other edition it is no yardstick.
"""

from dataclasses import dataclass

FULL, LAST_LAYER, SCRATCH = "full fine-tuning", "last layer", "from scratch"


@dataclass(frozen=True)
class Result:
    """One published number."""

    method: str
    top1_percent: float
    source: str


@dataclass(frozen=True)
class Original:
    """Validation top-1 in the report that this project grew from (MobileNetV2, November 2021)."""

    val_top1_percent: float
    note: str = ""


ORIGINAL = {
    "cifar10": Original(96.224),
    "cars196": Original(87.295),
    "food101": Original(81.124, "printed there as 8.124, a slip of the pen that a later revision mends"),
    "cifar100": Original(73.242),
    "cub200": Original(78.141),
}

_AUTHORS = "the original report's authors"
_ON_TEST = "best epoch chosen on the test split"

RESULTS = {
    "cifar10": (
        Result(FULL, 96.2, f"{_AUTHORS}, later revision; {_ON_TEST}"),
        Result(FULL, 95.7, f"TLlib, model selection; {_ON_TEST}"),
        Result(FULL, 94.7, "ETran"),
        Result(LAST_LAYER, 76.4, f"{_AUTHORS}, later revision; {_ON_TEST}"),
        Result("biases", 90.8, f"{_AUTHORS}, later revision; {_ON_TEST}"),
        Result("lite residual", 93.8, f"{_AUTHORS}, later revision; {_ON_TEST}"),
        Result("lite residual, biases", 94.2, f"{_AUTHORS}, later revision; {_ON_TEST}"),
        Result(SCRATCH, 94.8, f"{_AUTHORS}, later revision; SGD with a cosine schedule; {_ON_TEST}"),
    ),
    "cifar100": (
        Result(FULL, 80.8, f"TLlib, model selection; {_ON_TEST}"),
        Result(FULL, 80.6, "KnowledgeReview"),
        Result(FULL, 78.1, "ETran"),
        Result(SCRATCH, 62.6, "at 32 px"),
    ),
    "cars196": (
        Result(FULL, 91.0, f"TLlib, model selection; {_ON_TEST}"),
        Result(FULL, 87.1, "eqy"),
        Result(FULL, 86.4, "ETran"),
        Result(SCRATCH, 66.4, "source not recorded"),
    ),
    "cub200": (Result(FULL, 78.8, "CURL"),),
    "food101": (
        Result(FULL, 81.1, "ETran"),
        Result(FULL, 77.8, "STM32 model zoo"),
    ),
}
