"""How far a linear model on pixels gets on each prepared store: what fine-tuning has to beat honestly.

Ridge regression on 32 x 32 RGB pixels, its penalty chosen on validation. Run: `python -m benchmarks.linear_on_pixels`.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from finetune.store import Split, Store, open_store

PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10_000.0)


def pixels(split: Split) -> np.ndarray:
    """float64, images x 3072, in [0, 1]."""
    small = (Image.fromarray(split.image(i)).resize((32, 32), Image.Resampling.BILINEAR) for i in range(len(split)))
    return np.stack([np.asarray(image, np.float64).ravel() / 255 for image in small])


def accuracy(store: Store) -> float:
    """Test top-1 in [0, 1]."""
    train, val, test = (store.split(name) for name in ("train", "val", "test"))
    x = pixels(train)
    mean = x.mean(0)
    x -= mean
    targets = np.eye(len(store.classes))[train.labels]
    targets -= targets.mean(0)
    gram = x @ x.T

    def top1(split: Split, penalty: float) -> float:
        weights = x.T @ np.linalg.solve(gram + penalty * np.eye(len(gram)), targets)
        return float((((pixels(split) - mean) @ weights).argmax(1) == split.labels).mean())

    return top1(test, max(PENALTIES, key=lambda penalty: top1(val, penalty)))


def main() -> None:
    """Print a CSV line per store under prepared/."""
    print("dataset,classes,test_top1")
    for folder in sorted(Path("prepared").iterdir()):
        store = open_store(folder)
        print(f"{folder.name},{len(store.classes)},{accuracy(store):.4f}")


if __name__ == "__main__":
    main()
