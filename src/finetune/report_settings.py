"""The report's sections on what was run: the recipes, and what each strategy trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune import pictures, recipe_words
from finetune.comparison import row_of
from finetune.params import Params
from finetune.tables import markdown


def section(params: Params, comparison: Mapping[str, Any]) -> str:
    """Data sets, recipes and the strategies' own settings, as Markdown."""
    study = comparison["study"]
    sizes, recipes = [], []
    for dataset, of_set in comparison["datasets"].items():
        images, recipe = of_set["images"], params.training_for(dataset, study["baseline"])
        sizes.append([of_set["title"], of_set["classes"], images["train"], images.get("val") or "–", images["test"]])
        steps = (recipe_words.optimizer(recipe.optimizer), recipe_words.schedule(recipe.schedule))
        words = (recipe.augmentation.name, "; ".join(recipe_words.extras(recipe)) or "–", recipe.selection)
        numbers = (recipe.image_size, recipe.epochs, recipe.batch_size, f"{recipe.lr:g}", f"{recipe.weight_decay:g}")
        recipes.append([of_set["title"], *steps, *words, *numbers])
    variants = []
    for name in study["strategies"]:
        variant = params.strategies[name]
        settings = recipe_words.own_settings(variant.options, variant.training)
        variants.append([f"`{name}`", f"`{params.plan_for(name)}`", settings or "–"])
    backbone = params.backbone
    source = f"`{backbone.weights}` of torchvision" if backbone.source == "torchvision" else f"`{backbone.source}`"
    of_recipe = ["optimizer", "schedule", "augmentation", "besides", "epoch kept"]
    of_recipe += ["image px", "epochs", "batch", "lr", "weight decay"]
    return "\n\n".join(
        [
            "## Settings",
            f"Arch: MobileNetV2 (width 1.0), trained with {_optimizers(params, comparison)}; pretrained weights: "
            f"{source}.",
            f"Edition of the data sets: `{study['edition']}`. Seeds: {', '.join(map(str, study['seeds']))}. "
            f"Baseline: `{study['baseline']}`.",
            markdown(("Data set", "classes", "train images", "validation", "test"), sizes, words=1),
            "The recipe is the baseline's:",
            markdown(("Data set", *of_recipe), recipes, words=6),
            markdown(("Strategy", "plan", "own settings"), variants, words=3),
        ]
    )


def strategies(params: Params, comparison: Mapping[str, Any], folder: Path) -> str:
    """What each strategy trains, a picture each, as Markdown."""
    first, of_set = next(iter(comparison["datasets"].items()))
    parts = [
        "## Strategies",
        f"What each strategy trains, as audited before the first step of its run on {of_set['title']}, seed "
        f"{comparison['study']['seeds'][0]}. A strip for each phase of the training, the network's blocks from image "
        "to logits.",
    ]
    for name in comparison["study"]["strategies"]:
        cost = row_of(comparison, first, name)["cost"]
        title = f"{name}: trains {cost['trainable_parameters']:,} of {cost['total_parameters']:,} parameters"
        parts.append(pictures.audit(comparison, name, title, folder))
    return "\n\n".join(parts)


def _optimizers(params: Params, comparison: Mapping[str, Any]) -> str:
    """The baseline's optimizer on the first data set, and what has another one."""
    known, study = pictures.titles(comparison), comparison["study"]
    stepped = {row["strategy"] for row in comparison["audits"] if "solve" not in row["adds"].split()}
    users: dict[str, list[str]] = {}
    for name in (study["baseline"], *study["strategies"]):
        chosen = {
            one: recipe_words.optimizer(params.training_for(one, name).optimizer)
            if name in stepped
            else recipe_words.solver()
            for one in known
        }
        for words in dict.fromkeys(chosen.values()):
            sets = [known[one] for one in known if chosen[one] == words]
            user = f"`{name}`" if len(sets) == len(known) else f"`{name}` on {' and '.join(sets)}"
            users[words] = list(dict.fromkeys([*users.get(words, []), user]))
    first, *others = users
    return first + "".join(f", but for {', '.join(users[words])}: {words}" for words in others)
