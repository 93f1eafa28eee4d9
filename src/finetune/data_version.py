"""data/: which bytes lie there, whether DVC's cache holds them, and another version of them in their place."""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from finetune import data_file, sample_remote
from finetune.errors import InputError
from finetune.unsignalled import signals_later

Say = Callable[[str], None]
Outs = Mapping[str, Mapping[str, Any]]  # path, data/<data set> -> its entry under `outs`

_CHUNK = 1 << 20  # bytes
_SILENCE = 5.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Folder:
    """An out of data.dvc as it lies in the workspace."""

    path: str  # data/<data set>
    md5: Mapping[str, str]  # of each file by its path in the folder; hidden files are nobody's data


@dataclass(frozen=True)
class Change:
    """What must become otherwise."""

    folders: Sequence[Folder]
    cache: Path  # DVC's


@dataclass(frozen=True)
class Placed:
    """How each out came to be as data.dvc says."""

    right: list[str]  # lay there already
    brought: list[str]  # from DVC's cache, or pulled from the remote that the out names
    missing: list[str]  # in neither; what lay in its place is in the cache


def change(root: Path, outs: Outs, say: Say = print) -> Change:
    """Which of `outs` have a hash and lie there otherwise, or not at all.

    Raises:
        InputError: what lies in such a place is a link to a folder, or is not in DVC's cache.
    """
    places = {path: root / path for path, out in outs.items() if out.get("md5")}
    if links := [path for path, place in places.items() if place.is_symlink() and place.is_dir()]:
        raise InputError(f"{links[0]}: is a link to a folder, expected the folder itself; move the link away")
    md5s = _hashes([file for place in places.values() for file in _files(place)], say)
    folders = [Folder(p, {f.relative_to(root / p).as_posix(): md5s[f] for f in _files(root / p)}) for p in places]
    folders = [folder for folder in folders if _hash(folder.md5) != outs[folder.path]["md5"]]
    cache = _cache(root) if folders else root
    _refuse_uncached(root, folders, cache)
    return Change(folders, cache)


def make(root: Path, outs: Outs, change: Change, say: Say = print) -> Placed:
    """Put what data.dvc says in the place of what lies there, all of which is in DVC's cache.

    Raises:
        InputError: DVC could not; nothing is lost, and the same call goes on from there.
    """
    differ = {folder.path: folder for folder in change.folders}
    cached = [path for path in differ if _is_whole(change.cache, outs[path]["md5"])]
    pulled = [path for path in differ if path not in cached and outs[path].get("remote")]
    for words in (["checkout", *cached], ["pull", *pulled]):
        if len(words) > 1 and (code := _dvc(root, say, *words)):
            raise InputError(
                f"`dvc {' '.join(words)}` ended with exit code {code}; mend what it names above, then repeat: what lay "
                "in data/ is in DVC's cache"
            )
    missing = [path for path in differ if path not in (*cached, *pulled)]
    for path in missing:
        _remove(root / path, differ[path].md5)
    return Placed([path for path in outs if path not in differ], cached + pulled, missing)


def _files(place: Path) -> list[Path]:
    """The files that DVC sees: .dvcignore leaves out what `finetune fetch` is still bringing, which is hidden."""
    if place.is_file():
        return [place]
    visible = (path for path in sorted(place.rglob("*")) if not path.relative_to(place).parts[0].startswith("."))
    return [path for path in visible if path.is_file()]  # a link to a cached file that is gone is no file


def _hash(md5: Mapping[str, str]) -> str:
    """As DVC hashes a folder; of a single file, whose path is '.', its own."""
    if set(md5) == {"."}:
        return md5["."]
    listed = [{"md5": md5[name], "relpath": name} for name in sorted(md5)]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _hashes(files: Sequence[Path], say: Say) -> dict[Path, str]:
    total = sum(file.stat().st_size for file in files)
    began = spoken = time.monotonic()
    found = {}
    with tqdm(desc="data: checks", total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        done = 0
        for file in files:
            digest = hashlib.md5(usedforsecurity=False)
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    bar.update(len(chunk))
                    done += len(chunk)
                    if bar.disable and (now := time.monotonic()) - spoken > _SILENCE:
                        rate, spoken = done / (now - began), now
                        left = f"{rate / 1e6:.0f} MB/s, {(total - done) / rate:.0f} s left"
                        say(f"data: checks {file}, {done / 1e9:.1f} of {total / 1e9:.1f} GB, {left}")
            found[file] = digest.hexdigest()
    return found


def _refuse_uncached(root: Path, folders: Iterable[Folder], cache: Path) -> None:
    lost = {
        folder.path: names
        for folder in folders
        if (names := [name for name, md5 in folder.md5.items() if not _holds(cache, md5, root / folder.path / name)])
    }
    if lost:
        named = "; ".join(
            f"{path}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for path, names in lost.items()
        )
        raise InputError(
            f"{named}: not in DVC's cache, so another version of data/ would be the end of it; {_keep(root, lost)}, or "
            "move it away (`finetune fetch NAME --from FOLDER` brings archives back), then repeat the command"
        )


def _keep(root: Path, paths: Iterable[str]) -> str:
    """How these come into DVC's cache: by `dvc add`, once data.dvc lists them (git ignores the file it would write)."""
    listed = data_file.outs(root)
    samples = [path for path in paths if listed.get(path, {}).get("remote") == sample_remote.NAME]
    entries = [f"echo '- path: {path}' >> {data_file.NAME}" for path in paths if path not in listed]
    if entries and not (root / data_file.NAME).exists():
        entries.insert(0, f"echo 'outs:' > {data_file.NAME}")
    before = f"delete the line `remote: {sample_remote.NAME}` of {', '.join(samples)} in {data_file.NAME}, then "
    add = " && ".join([*entries, f"dvc add {' '.join(paths)}"])
    return f"{before if samples else ''}put it there with `{add}`"


def _cache(root: Path) -> Path:
    """Where DVC's cache is."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise InputError(f"`dvc cache dir` failed ({said}); mend that, then repeat the command: nothing was changed")
    return root / done.stdout.strip()


def _object(cache: Path, md5: str) -> Path:
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def _holds(cache: Path, md5: str, file: Path) -> bool:
    """Whether the cache holds what lies in `file`, in full length."""
    held = _object(cache, md5)
    return held.is_file() and held.stat().st_size == file.stat().st_size


def _is_whole(cache: Path, md5: str) -> bool:
    """Whether the cache holds a version with all of its files."""
    listing = _object(cache, md5)
    if not listing.is_file() or not md5.endswith(".dir"):
        return listing.is_file()
    return all(_object(cache, entry["md5"]).is_file() for entry in json.loads(listing.read_text(encoding="utf-8")))


def _remove(place: Path, names: Iterable[str]) -> None:
    for name in names:
        (place / name).unlink(missing_ok=True)
    if place.is_dir():
        for folder in sorted((path for path in place.rglob("*") if path.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
        if not any(place.iterdir()):
            place.rmdir()


def _dvc(root: Path, say: Say, *words: str) -> int:
    """Run DVC, which asks nothing and of itself removes nothing that is not in its cache. Returns its exit code.

    What it prints is shown where it fails.
    """
    command, began = [sys.executable, "-m", "dvc", *words], time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        process = None
        try:
            with signals_later():
                process = subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed)
            while _is_at_work(process):
                say(f"data: `dvc {' '.join(words)}` is at work, {time.monotonic() - began:.0f} s so far")
        except BaseException:
            if process is not None:
                process.kill()
                process.wait()
            raise
        if process.returncode:
            printed.seek(0)
            sys.stderr.write(printed.read())
            sys.stderr.flush()
        return process.returncode


def _is_at_work(process: subprocess.Popen[bytes]) -> bool:
    """Whether it still is when a while has passed."""
    try:
        process.wait(_SILENCE)
    except subprocess.TimeoutExpired:
        return True
    return False
