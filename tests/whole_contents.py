"""All that a reader gives: examples with their splits and labels, whether these come before, with or after them."""

from dataclasses import replace

from finetune.datasets import SPLITS, Contents, Example


def whole(contents: Contents) -> tuple[tuple[str, ...], list[Example]]:
    """The class names in label order, and every example."""
    examples = list(contents.examples)
    if contents.late is None:
        return contents.classes, examples
    late = contents.late()
    if late.splits is None or late.labels is None:
        return late.classes, examples
    told = zip(examples, late.splits, late.labels, strict=True)
    return late.classes, [replace(example, split=SPLITS[split], label=int(label)) for example, split, label in told]
