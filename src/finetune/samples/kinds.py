"""Stand-in for CIFAR-100: 40 of its classes (8 superclasses of 5) as simple drawings, 32 x 32 pixels."""

import numpy as np

from finetune.samples import sketches
from finetune.samples.shapes import Rng

_STEM = "line dark .08 0 0 .03 1; oval dark .22 .65 .2 .08 -.5; "
_LEGS = "line2 dark .06 0 -.24 {0} -.4; line2 dark .06 0 .03 {0} .05; line2 dark .06 0 .33 {0} .55; "
_FEELERS = "line2 dark .05 0 -.6 .3 -.98; "
_TRUNK = "box accent -.1 0 .1 .95; "
# Superclass -> class -> sketch; both by their names in CIFAR-100.
_SKETCHES = {
    "fish": {
        "aquarium_fish": """
            poly accent -.2 -.3 -.4 -.9 .3 -.4; poly accent -.5 0 -.95 -.4 -.8 0 -.95 .4; oval body .1 0 .65 .5;
            oval light -.2 0 .07 .42; oval light .2 0 .07 .42; oval light .5 -.08 .1 .1; oval dark .52 -.08 .05 .05""",
        "flatfish": """
            box accent -1 -.15 -.7 .15; oval accent 0 0 .85 .68; oval body 0 0 .7 .5; oval dark .45 -.2 .08 .08;
            oval dark .5 .1 .08 .08""",
        "ray": """
            line accent .07 0 .4 .2 1; poly body 0 -.7 .95 .1 0 .55 -.95 .1; oval2 dark .15 -.4 .06 .06""",
        "shark": """
            poly body 0 -.1 -.25 -.75 .3 -.1; poly body -.6 0 -1 -.6 -.8 .05 -.95 .35; oval body 0 .05 .95 .25;
            oval light .1 .18 .7 .11; poly body .2 .15 -.1 .65 0 .15; oval dark .55 -.05 .05 .05""",
        "trout": """
            poly accent -.5 0 -.95 -.4 -.8 0 -.95 .4; oval body 0 0 .75 .28; oval accent -.4 -.08 .06 .06;
            oval accent -.2 -.08 .06 .06; oval accent 0 -.08 .06 .06; oval accent .2 -.08 .06 .06;
            oval light .5 -.08 .1 .1; oval dark .52 -.08 .05 .05""",
    },
    "flowers": {
        "orchid": _STEM + "star body 3 0 -.25 .4 .38 .16; star accent 2 0 -.25 .3 .3 .26; oval light 0 -.18 .14 .2",
        "poppy": _STEM + "star body 4 0 -.25 .3 .38 .38; oval dark 0 -.25 .2 .2",
        "rose": _STEM + """
            oval body 0 -.25 .6 .6; oval accent .03 -.25 .46 .46; oval body 0 -.22 .38 .38;
            oval accent -.03 -.25 .24 .24;
            oval body 0 -.25 .16 .16""",
        "sunflower": _STEM + "star body 12 0 -.25 .5 .25 .1; oval accent 0 -.25 .34 .34; oval dark 0 -.25 .22 .22",
        "tulip": _STEM + """
            oval body 0 -.15 .42 .42; poly body -.42 -.15 -.45 -.8 -.18 -.4 0 -.9 .18 -.4 .45 -.8 .42 -.15""",
    },
    "food_containers": {
        "bottle": """
            box body -.13 -.95 .13 -.3; oval body 0 -.2 .33 .25; box body -.33 -.2 .33 .9; box light -.33 .1 .33 .5;
            box accent -.16 -1 .16 -.85""",
        "bowl": """
            poly body -.9 -.1 -.75 .35 -.4 .62 0 .7 .4 .62 .75 .35 .9 -.1; box body -.3 .6 .3 .8;
            oval accent 0 -.1 .9 .16""",
        "can": "box body -.45 -.7 .45 .7; oval body 0 .7 .45 .14; oval light 0 -.7 .45 .14; box accent -.45 -.3 .45 .3",
        "cup": """
            oval body .55 .05 .36 .38; oval dark .55 .05 .2 .22; poly body -.6 -.5 .55 -.5 .4 .7 -.45 .7;
            oval light -.02 -.5 .57 .14""",
        "plate": "oval body 0 0 .95 .76; oval light 0 0 .85 .68; oval body 0 0 .58 .46; oval light 0 0 .5 .4",
    },
    "fruit_and_vegetables": {
        "apple": """
            line dark .09 0 -.4 .1 -.9; oval accent .3 -.75 .24 .1 -.4; oval2 body .27 .1 .5 .6;
            oval light -.4 -.1 .1 .18""",
        "mushroom": """
            box light -.22 0 .22 .85; poly body -.85 0 -.7 -.45 -.4 -.7 0 -.8 .4 -.7 .7 -.45 .85 0;
            oval accent -.4 -.25 .12 .1; oval accent .05 -.5 .12 .1; oval accent .4 -.2 .12 .1""",
        "orange": """
            oval body 0 0 .8 .8; oval dark 0 -.62 .1 .06; star accent 5 0 .1 .42 .05 .05;
            star accent 3 0 .1 .18 .05 .05""",
        "pear": """
            line dark .09 0 -.5 .1 -.95; oval body 0 .35 .6 .52; oval body 0 -.3 .33 .45;
            oval light -.25 .25 .08 .18""",
        "sweet_pepper": """
            line dark .14 0 -.5 .05 -.95; oval2 body .42 .05 .34 .7; oval accent 0 .1 .3 .72;
            oval light -.5 -.2 .07 .2""",
    },
    "household_furniture": {
        "bed": """
            box dark -.95 -.6 -.82 .7; box dark .82 -.1 .95 .7; box body -.82 .05 .82 .45;
            box light -.78 -.15 -.3 .08""",
        "chair": """
            box body -.5 -.95 -.36 .95; box body .36 .1 .5 .95; box accent -.5 0 .55 .16;
            box body -.36 -.8 -.28 0""",
        "couch": """
            box body -.8 -.5 .8 .4; box2 accent .02 .05 .65 .35; oval2 body .82 .2 .18 .36; box2 dark .7 .5 .8 .65""",
        "table": "box accent -.95 -.35 .95 -.18; box2 body .66 -.18 .8 .7",
        "wardrobe": """
            box body -.6 -.95 .6 .85; box2 accent .1 -.8 .5 .7; box dark -.03 -.85 .03 .75;
            oval2 light .14 0 .06 .06""",
    },
    "insects": {
        "bee": """
            oval2 light .5 -.3 .45 .2 -.4; oval body 0 .2 .36 .65; box dark -.32 0 .32 .13; box dark -.32 .3 .32 .43;
            box dark -.26 .58 .26 .71; oval dark 0 -.5 .2 .18""",
        "beetle": _LEGS.format(0.85) + _FEELERS + """
            oval accent 0 -.5 .3 .25; oval body 0 .15 .56 .62; box dark -.03 -.4 .03 .75; oval2 dark .28 0 .1 .1;
            oval2 dark .28 .35 .1 .1""",
        "butterfly": _FEELERS + """
            oval2 body .5 -.3 .45 .36 -.4; oval2 accent .55 -.3 .2 .16 -.4; oval2 body .38 .4 .32 .3 -.4;
            oval2 accent .4 .4 .13 .12; oval dark 0 0 .08 .6""",
        "caterpillar": """
            oval accent -.75 .15 .24 .26; oval body -.45 .27 .24 .26; oval accent -.15 .15 .24 .26;
            oval body .15 .27 .24 .26;
            oval accent .45 .15 .24 .26; oval body .75 0 .27 .28; oval dark .82 -.05 .07 .07;
            line dark .05 .75 -.2 .85 -.6""",
        "cockroach": _LEGS.format(0.6) + """
            line2 dark .05 0 -.6 .6 -1.1; oval body 0 .15 .26 .75; oval accent 0 -.5 .22 .16""",
    },
    "large_man-made_outdoor_things": {
        "bridge": """

            poly2 body 0 -.1 1 -.1 1 .6 .85 .6 .7 .27 .45 .15 .2 .27 .05 .6 0 .6;
            box accent -1 -.25 1 -.08""",
        "castle": """
            box accent -.6 -.15 .6 .75; box2 body .46 -.6 .94 .75; box2 body .46 -.78 .6 -.55;
            box2 body .8 -.78 .94 -.55;
            oval dark 0 .4 .18 .25; box dark -.18 .4 .18 .75""",
        "house": """
            box body -.65 -.15 .65 .75; poly accent -.85 -.1 0 -.85 .85 -.1; box dark -.15 .25 .15 .75;
            box2 light .26 .05 .52 .32""",
        "road": """
            poly accent -.2 -.8 .2 -.8 1.05 1 -1.05 1; poly body -.14 -.8 .14 -.8 .9 1 -.9 1;
            poly light -.03 -.55 .03 -.55 .05 -.35 -.05 -.35; poly light -.05 -.15 .05 -.15 .08 .15 -.08 .15;
            poly light -.09 .4 .09 .4 .14 .9 -.14 .9""",
        "skyscraper": """
            box body -.35 -.95 .35 .95; box2 light .06 -.8 .24 -.66; box2 light .06 -.5 .24 -.36;
            box2 light .06 -.2 .24 -.06;
            box2 light .06 .1 .24 .24; box2 light .06 .4 .24 .54; box dark -.1 .72 .1 .95""",
    },
    "trees": {
        "maple_tree": _TRUNK + "oval body 0 -.25 .55 .68",
        "oak_tree": """
            box accent -.18 0 .18 .95; oval2 body .5 -.1 .42 .36; oval2 body .3 -.5 .42 .36;
            oval body 0 -.15 .42 .36""",
        "palm_tree": """
            line accent .13 -.2 .95 -.15 .2 0 -.55; oval2 body .4 -.38 .45 .1 .5; oval2 body .4 -.7 .45 .1 -.4;
            oval body 0 -.75 .1 .25""",
        "pine_tree": _TRUNK + """
            poly body 0 -.95 .38 -.3 -.38 -.3; poly body 0 -.6 .52 .1 -.52 .1; poly body 0 -.2 .68 .55 -.68 .55""",
        "willow_tree": _TRUNK + """
            oval body 0 -.45 .6 .36; line2 body .11 .45 -.5 .75 .15; line2 body .11 .27 -.5 .45 .25;
            line2 body .11 .12 -.5 .2 .33""",
    },
}  # fmt: skip
COARSE = tuple(_SKETCHES)
_PARTS = {name: sketches.parse(sketch) for group in _SKETCHES.values() for name, sketch in group.items()}
CLASSES = tuple(sorted(_PARTS))


def picture(label: int, rng: Rng) -> np.ndarray:
    """One image of class `label`: uint8, 32 x 32 x 3."""
    return sketches.picture(_PARTS[CLASSES[label]], rng)


def coarse(label: int) -> int:
    """The superclass of class `label`, its place in COARSE."""
    return next(place for place, group in enumerate(_SKETCHES.values()) if CLASSES[label] in group)
