"""Images of one's own for tests: class folders, packed as the place's name says, or laid out as they are."""

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

import tiny_archives

CLASSES = ("ant", "bee", "cat")
FORMS = ("own.tar", "own.tar.gz", "own.tgz", "own.zip", "own")  # the last one: no archive


def jpeg(label: int, number: int = 0) -> bytes:
    """A picture of the colour of its label, as those of the tiny archives are; its width tells the number."""
    file = io.BytesIO()
    Image.new("RGB", (12 + 5 * number, 10), tiny_archives.colour(label)).save(file, "JPEG", quality=95)
    return file.getvalue()


def split(classes: Iterable[str] = CLASSES, lead: str = "", **images: int) -> dict[str, bytes]:
    """`images` per class in each split folder, as split(train=4, val=2) has them: {path: content}."""
    return {
        f"{lead}{folder}/{name}/{number}.jpg": jpeg(label, number + 100 * list(images).index(folder))
        for folder, count in images.items()
        for label, name in enumerate(classes)
        for number in range(count)
    }


def pool(images: int, classes: Iterable[str] = CLASSES) -> dict[str, bytes]:
    """`images` per class, not split."""
    return {f"{name}/{i}.jpg": jpeg(label, i) for label, name in enumerate(classes) for i in range(images)}


def write(place: Path, files: Mapping[str, bytes]) -> Path:
    """Write {path: content} as the archive `place`, or below the folder `place`; a path that ends with "/" is a folder.

    Returns:
        `place`.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, data in files.items():
                zipped.writestr(name, data)
    elif place.suffix:
        with tarfile.open(place, "w" if place.suffix == ".tar" else "w:gz") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name.rstrip("/"))
                info.type, info.size = (tarfile.DIRTYPE, 0) if name.endswith("/") else (tarfile.REGTYPE, len(data))
                tar.addfile(info, io.BytesIO(data))
    else:
        for name, data in files.items():
            path = place / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_bytes(data)
    return place
