"""Files out of a tar archive."""

import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Python before 3.11.4 knows no filters.
_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def unpack_files(tar: tarfile.TarFile, folder: Path, files: Sequence[tarfile.TarInfo]) -> None:
    """Unpack `files` of `tar` into `folder`."""
    tar.extractall(folder, files, **_FILTER)
