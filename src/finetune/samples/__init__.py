"""The sample edition: five small drawn stand-ins in the official archive layouts, and the upstream set."""

from finetune.samples.edition import STAND_INS, draw, draw_one
from finetune.samples.upstream import CLASSES as UPSTREAM_CLASSES
from finetune.samples.upstream import example as upstream_example
from finetune.samples.upstream import upstream

__all__ = ["STAND_INS", "UPSTREAM_CLASSES", "draw", "draw_one", "upstream", "upstream_example"]
