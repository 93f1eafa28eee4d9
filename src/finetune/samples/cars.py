"""Stand-in for Stanford Cars: 18 cars seen from the side (6 bodies x 3 makes), on a road before houses."""

import numpy as np

from finetune.samples.shapes import (
    ACCENT,
    BODY,
    DARK,
    LIGHT,
    Canvas,
    Part,
    Rng,
    ellipse,
    hsv,
    palette,
    polygon,
    pose,
    stroke,
)

_BODIES = ("Sedan", "Coupe", "Wagon", "SUV", "Pickup", "Van")
_MAKES = ("Alva", "Borea", "Corvo")  # spoked wheels; a stripe and plain wheels; a roof rack and ringed wheels
CLASSES = tuple(f"{make} {body} 2012" for make in _MAKES for body in _BODIES)

# Side views from the rear (left) to the front: the outline above the sill, and the windows.
_OUTLINES = {
    "Sedan": ((-1, .1), (-.95, -.15), (-.62, -.18), (-.42, -.5), (.15, -.5), (.42, -.16), (.9, -.08), (1, .1)),
    "Coupe": ((-1, .1), (-.98, -.12), (-.2, -.42), (.1, -.42), (.38, -.12), (.92, -.02), (1, .12)),
    "Wagon": ((-1, .1), (-.98, -.2), (-.88, -.5), (.15, -.5), (.42, -.16), (.9, -.08), (1, .1)),
    "SUV": ((-.95, .05), (-.95, -.3), (-.85, -.68), (.25, -.68), (.45, -.28), (.9, -.22), (.97, .05)),
    "Pickup": ((-1, .05), (-1, -.18), (-.22, -.18), (-.2, -.6), (.25, -.6), (.45, -.2), (.92, -.14), (1, .05)),
    "Van": ((-.95, .1), (-.95, -.75), (.45, -.75), (.78, -.22), (.95, -.1), (.95, .1)),
}  # fmt: skip
_WINDOWS = {
    "Sedan": ((-.5, -.2, -.38, -.42, -.15), (-.1, -.2, -.1, -.42, .28)),
    "Coupe": ((-.3, -.16, -.12, -.35, .2),),
    "Wagon": ((-.84, -.22, -.8, -.42, -.5), (-.45, -.22, -.45, -.42, -.1), (-.05, -.22, -.05, -.42, .3)),
    "SUV": ((-.78, -.34, -.74, -.58, -.35), (-.28, -.34, -.28, -.58, .3)),
    "Pickup": ((-.12, -.24, -.12, -.5, .3),),
    "Van": ((.15, -.3, .15, -.62, .6),),
}  # fmt: skip


def picture(label: int, rng: Rng) -> np.ndarray:
    """One image of model `label`: uint8, 60 to 72 pixels high and 84 to 96 wide."""
    make, body = _MAKES[label // len(_BODIES)], _BODIES[label % len(_BODIES)]
    bright = bool(rng.integers(2))
    canvas = _street(int(rng.integers(84, 97)), int(rng.integers(60, 73)), rng, bright)
    canvas.add(_car(make, body, rng), pose(rng, (0.85, 1.2), 0.12, 0.15), palette(rng, bright))
    return canvas.finish(rng, grain=2.5)


def _street(width: int, height: int, rng: Rng, bright_figure: bool) -> Canvas:
    low, high = (0.1, 0.5) if bright_figure else (0.6, 1.0)

    def shade(saturation: float) -> tuple[int, int, int]:
        return hsv(rng.uniform(), rng.uniform(0, saturation), rng.uniform(low, high))

    canvas = Canvas(width, height, shade(0.6))
    for left in np.arange(-1.8, 1.6, 0.45):  # houses
        wide, top = rng.uniform(0.3, 0.6), rng.uniform(-0.9, 0.1)
        canvas.fill(np.array([(left, 1), (left, top), (left + wide, top), (left + wide, 1)]), shade(0.5))
    kerb = rng.uniform(0.1, 0.45)
    canvas.fill(np.array([(-2, kerb), (2, kerb), (2, 2), (-2, 2)]), shade(0.15))
    for left in np.arange(-2, 2, 0.6) + rng.uniform(0, 0.6):  # lane marks
        mark = np.array([(left, 0.8), (left + 0.3, 0.8), (left + 0.28, 0.86), (left - 0.02, 0.86)])
        canvas.fill(mark, shade(0.15))
    return canvas


def _car(make: str, body: str, rng: Rng) -> list[Part]:
    outline = np.array(_OUTLINES[body]) + rng.uniform(-0.03, 0.03, (len(_OUTLINES[body]), 2))
    parts = [Part(np.vstack([outline, [(1.0, 0.32), (-0.98, 0.32)]]), BODY)]
    for rear, sill, top_rear, top, front in _WINDOWS[body]:
        top_front = front - (0.16 if front > 0 else 0)
        parts.append(polygon(LIGHT, (rear, sill), (top_rear, top), (top_front, top), (front, sill)))
    if make == "Borea":
        parts.append(polygon(ACCENT, (-0.96, 0.0), (0.95, 0.0), (0.97, 0.12), (-0.97, 0.12)))
    if make == "Corvo":
        roof = float(outline[:, 1].min())
        middle = float(outline[outline[:, 1] < roof + 0.1, 0].mean())
        parts += stroke(DARK, 0.05, (middle - 0.3, roof - 0.1), (middle + 0.3, roof - 0.1))
        parts += [p for x in (-0.22, 0.22) for p in stroke(DARK, 0.04, (middle + x, roof - 0.1), (middle + x, roof))]
    parts.append(ellipse(LIGHT, 0.93, 0.08, 0.07, 0.06))
    radius = rng.uniform(0.2, 0.24) * (1.15 if body in ("SUV", "Pickup") else 1)
    return [*parts, *(part for x in (-0.58, 0.58) for part in _wheel(make, x, radius, rng))]


def _wheel(make: str, x: float, radius: float, rng: Rng) -> list[Part]:
    y = 0.32
    tyre = ellipse(DARK, x, y, radius, radius)
    if make == "Alva":
        turns = rng.uniform(0, 2 * np.pi) + np.arange(5) * 2 * np.pi / 5
        tips = [(x + radius * 0.7 * np.cos(t), y + radius * 0.7 * np.sin(t)) for t in turns]
        return [tyre, *(part for tip in tips for part in stroke(LIGHT, 0.06, (x, y), tip))]
    if make == "Borea":
        return [tyre, ellipse(ACCENT, x, y, radius * 0.65, radius * 0.65)]
    rings = ((LIGHT, 0.7), (DARK, 0.5), (LIGHT, 0.22))
    return [tyre, *(ellipse(tone, x, y, radius * r, radius * r) for tone, r in rings)]
