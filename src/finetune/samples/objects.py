"""Stand-in for CIFAR-10: its ten classes as simple drawings, 32 x 32 pixels."""

from math import pi

import numpy as np

from finetune.samples import sketches
from finetune.samples.shapes import Rng

_LEGS = """
        line body .12 -.5 .15 -.6 {0}; line body .12 -.34 .2 -.24 {0}; line body .12 .26 .2 .16 {0};
        line body .12 .42 .15 .5 {0};"""  # down to y
_SKETCHES = {
    "airplane": """
        oval body 0 0 .95 .13; oval dark .72 0 .1 .06; poly accent .25 0 -.35 .9 -.55 .9 -.2 0;
        poly accent .25 0 -.35 -.9 -.55 -.9 -.2 0; poly accent -.65 0 -.95 .38 -1 .36 -.88 0;
        poly accent -.65 0 -.95 -.38 -1 -.36 -.88 0""",
    "automobile": """
        poly body -.55 0 -.35 -.43 .25 -.43 .4 0; poly light -.42 0 -.28 -.34 -.06 -.34 -.06 0;
        poly light .02 0 .02 -.34 .2 -.34 .28 0; poly body -.95 .38 -.92 0 .75 -.02 .95 .12 .95 .38;
        oval2 dark .55 .38 .22 .22; oval2 light .55 .38 .09 .09""",
    "bird": """
        poly accent -.5 .1 -1.05 -.05 -1 .25; oval body -.05 .1 .6 .34 -.1; oval body .52 -.18 .25 .23;
        poly accent .7 -.28 1.05 -.14 .7 -.08; oval dark .58 -.24 .06 .06; poly accent .25 .05 -.3 -.7 -.55 -.55 -.3 .2;
        line dark .07 0 .4 .05 .75; line dark .07 -.2 .4 -.15 .75""",
    "cat": """
        line accent .15 .35 .8 .8 .6 .85 .05; oval body 0 .45 .45 .52; oval light 0 .5 .2 .32;
        poly2 body .44 -.92 .06 -.6 .44 -.3; oval2 body .22 .9 .16 .1; oval body 0 -.35 .46 .38;
        oval2 dark .18 -.38 .08 .1; oval accent 0 -.2 .09 .06""",
    "deer": _LEGS.format(0.9) + """
        oval body -.05 .1 .55 .24; poly light -.5 -.05 -.72 -.12 -.6 .15; line body .2 .4 0 .58 -.38;
        oval body .68 -.42 .22 .12 -.4; line accent .06 .58 -.5 .36 -.75 .4 -1; line accent .06 .58 -.5 .82 -.75 .78 -1;
        line accent .06 .36 -.75 .13 -.85; line accent .06 .82 -.75 1.02 -.85; oval light -.35 0 .05 .05;
        oval light -.15 .1 .05 .05; oval light .1 -.02 .05 .05""",
    "dog": _LEGS.format(0.75) + """
        line body .13 -.52 .05 -.8 -.5; oval body -.05 .15 .58 .27; oval accent -.15 .03 .26 .16;
        oval body .52 -.28 .3 .28; oval body .8 -.16 .22 .14; oval dark .96 -.2 .08 .07; oval dark .6 -.36 .06 .06;
        oval accent .36 -.18 .12 .3 .2""",
    "frog": """
        oval2 body .75 .45 .22 .34 .5; oval2 accent .85 .75 .26 .09; oval2 accent .3 .78 .16 .08;
        oval body 0 .25 .82 .5;
        oval light 0 .48 .52 .24; oval2 body .42 -.25 .24 .24; oval2 light .42 -.25 .17 .17;
        oval2 dark .42 -.25 .09 .09;
        line dark .06 -.45 .18 0 .28 .45 .18""",
    "horse": _LEGS.format(0.95) + """
        line accent .14 -.55 0 -.78 .15 -.8 .55; oval body -.05 .08 .6 .3; poly body .2 -.1 .45 -.75 .68 -.65 .55 .15;
        poly accent .1 -.12 .34 -.85 .5 -.78 .32 -.1; oval body .72 -.55 .3 .14 .6; poly body .46 -.7 .5 -.95 .6 -.7;
        oval dark .66 -.64 .05 .05""",
    "ship": """
        box accent -.1 -.7 .15 -.2; line dark .05 .6 .1 .6 -.85; poly light -.5 .1 -.5 -.25 .4 -.25 .5 .1;
        oval dark -.3 -.07 .06 .06; oval dark -.05 -.07 .06 .06; oval dark .2 -.07 .06 .06;
        poly body -.95 .05 1 .05 .7 .55 -.75 .55; poly accent -.85 .35 .82 .35 .7 .55 -.75 .55""",
    "truck": """
        box accent -1 -.6 .3 .35; poly body .36 .4 .36 -.22 .72 -.22 .95 .08 .95 .4;
        poly light .46 .06 .46 -.13 .66 -.13 .8 .06; box dark -1 .35 .95 .45; oval dark -.72 .47 .19 .19;
        oval dark -.35 .47 .19 .19; oval dark .62 .47 .19 .19; oval light -.72 .47 .08 .08; oval light -.35 .47 .08 .08;
        oval light .62 .47 .08 .08""",
}  # fmt: skip
CLASSES = tuple(_SKETCHES)
_PARTS = {name: sketches.parse(sketch) for name, sketch in _SKETCHES.items()}


def picture(label: int, rng: Rng) -> np.ndarray:
    """One image of class `label`: uint8, 32 x 32 x 3."""
    name = CLASSES[label]
    return sketches.picture(_PARTS[name], rng, turn=pi if name == "airplane" else 0.4)
