"""Which archives are to lie where, and whence they may come."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from finetune.datasets import Dataset
from finetune.datasets._members import ARCHIVES
from finetune.errors import InputError, suggest

_ANY = "any"  # the edition of archives that nobody has described: taken as they come


@dataclass(frozen=True)
class Wanted:
    """One archive of a data set."""

    dataset: Dataset
    edition: str
    place: Path  # data/<name>/<archive>
    sources: tuple[str, ...]  # URLs or paths, in the order in which they are tried

    @property
    def md5(self) -> str | None:
        """What the edition says, 32 hex digits; None for the edition `any`."""
        return None if self.edition == _ANY else self.dataset.editions[self.edition].md5[self.place.name]

    def named(self, md5: str) -> str:
        """An MD5 that was found, and the edition that it is of, if it is of one."""
        known = (name for name, edition in self.dataset.editions.items() if edition.md5.get(self.place.name) == md5)
        edition = next(known, None)
        return f"md5 {md5}" + (f" (the {edition} edition's)" if edition else "")


def wanted(
    dataset: Dataset,
    edition: str,
    folder: Path,
    sources: Mapping[str, Sequence[str]] = MappingProxyType({}),
    origin: str | None = None,
) -> list[Wanted]:
    """Every archive of a data set; of data of one's own, which has no editions, those that `sources` lists.

    Args:
        folder: where its archives lie.
        sources: of params.yaml; an archive that it lists comes from there alone.
        origin: as of `bring_from`; of data of one's own without sources its archive is wanted, by the name that
            params.yaml gives it, else by its own.

    Raises:
        InputError: there is no such edition, or `sources` names an archive that the data set has not, or none can be
            told from `origin`.
    """
    if not dataset.editions and not sources and origin is not None:
        return [Wanted(dataset, _ANY, folder / name, ()) for name in dataset.archives or _own(dataset.name, origin)]
    if not dataset.editions:
        if not sources:
            raise InputError(
                f"{folder}: {dataset.name} is data of one's own, and params.yaml names no source; bring it with "
                f"`finetune fetch {dataset.name} --from FILE`, put it there, or list links under "
                f"datasets.{dataset.name}.sources, as {{photos.zip: [https://…]}}"
            )
        if odd := [name for name in sources if Path(name).name != name]:
            raise InputError(
                f"params.yaml: datasets.{dataset.name}.sources: found '{odd[0]}', "
                f"expected the name of a file in {folder}"
            )
        return [Wanted(dataset, _ANY, folder / name, tuple(links)) for name, links in sources.items()]
    if edition not in (*dataset.editions, _ANY):
        raise InputError(f"{dataset.name}: found edition '{edition}'; {suggest(edition, [*dataset.editions, _ANY])}")
    for name in sources:
        if name not in dataset.archives:
            raise InputError(
                f"params.yaml: datasets.{dataset.name}.sources: '{name}' is no archive of {dataset.name}; "
                f"{suggest(name, dataset.archives)}"
            )
    official = dataset.sources if edition in ("official", _ANY) else {}
    return [
        Wanted(dataset, edition, folder / name, tuple(sources.get(name) or official.get(name, ())))
        for name in dataset.archives
    ]


def bring_from(archives: Sequence[Wanted], origin: str, say: Callable[[str], None] = print) -> list[Wanted]:
    """Those of `archives` that `origin` has, each to come from there alone.

    Args:
        origin: a file, which is one archive by its name or its MD5; a folder that has archives, or a folder
            data/<name> of them for each data set; or a URL, of one archive, or of such a folder if it ends in /.

    Raises:
        InputError: `origin` is none of these, or has none of the archives.
    """
    if "://" in origin:
        return _from_url(archives, origin)
    path = Path(origin).expanduser()
    if path.is_dir():
        return _from_folder(archives, path, say)
    if not path.is_file():
        raise InputError(f"--from {origin}: no such file or folder; name an archive, a folder of archives, or a URL")
    found: Sequence[Wanted] = [archive for archive in archives if archive.place.name == path.name]
    if (
        not found
        and len(archives) == 1
        and archives[0].md5 is None
        and _kind(path.name) == _kind(archives[0].place.name)
    ):
        found = archives  # of data of one's own the only one, which params.yaml gives another name
    if not found:
        say(f"{path}: has no archive's name; looks for its md5 among theirs")
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        found = [archive for archive in archives if archive.md5 == md5]
        if not found:
            raise InputError(f"{path}: neither its name nor its md5 {md5} is of {_names(archives)}; name one of these")
    return [replace(found[0], sources=(str(path),))]


def _from_folder(archives: Sequence[Wanted], folder: Path, say: Callable[[str], None]) -> list[Wanted]:
    found, lacking = [], []
    for archive in archives:
        name = archive.place.name
        here = [path for path in (folder / name, folder / archive.dataset.name / name) if path.is_file()]
        if here:
            found.append(replace(archive, sources=(str(here[0]),)))
        elif not archive.place.exists():
            lacking.append(archive)
    if not found:
        raise InputError(f"{folder}: has none of {_names(archives)}; name the folder in which they lie")
    if lacking:
        say(f"{folder}: has no {_names(lacking)}; bring the rest, too")
    return found


def _from_url(archives: Sequence[Wanted], url: str) -> list[Wanted]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"--from {url}: expected http://…, https://…, or a path; name one of these")
    if parts.path.endswith("/"):
        if parts.query or parts.fragment:
            raise InputError(f"--from {url}: expected nothing after the last /; name the folder, or one archive")
        return [replace(a, sources=(url + a.place.name, f"{url}{a.dataset.name}/{a.place.name}")) for a in archives]
    name = unquote(parts.path.rpartition("/")[2])
    found = [archive for archive in archives if archive.place.name == name] or archives
    if len(found) > 1:
        raise InputError(
            f"--from {url}: its last part is none of {_names(archives)}; name one data set of a single archive, or "
            "end the URL of a folder in /"
        )
    return [replace(found[0], sources=(url,))]


def _own(dataset: str, origin: str) -> list[str]:
    """The name of the archive of one's own data that `origin` is, or has if it is a folder."""
    path = Path(origin).expanduser()
    if "://" in origin:
        names = [Path(unquote(urlsplit(origin).path.rpartition("/")[2])).name]
    elif path.is_dir():
        names = sorted(file.name for place in (path, path / dataset) if place.is_dir() for file in place.iterdir())
    elif path.is_file():
        names = [path.name]
    else:
        return [path.name]  # what is not there is refused for that
    archives = sorted({name for name in names if _kind(name) and not name.startswith(".")})
    if len(archives) != 1:
        raise InputError(
            f"--from {origin}: found {', '.join(archives) or 'no archive by its name'}, expected one "
            f"{' or '.join(ARCHIVES)} of {dataset}; name that file, or set datasets.{dataset}.archive in params.yaml"
        )
    return archives


def _kind(name: str) -> str:
    """An archive's, by its name; empty for what is none."""
    kind = next((ending for ending in ARCHIVES if name.lower().endswith(ending)), "")
    return ".tar.gz" if kind == ".tgz" else kind


def _names(archives: Sequence[Wanted]) -> str:
    return ", ".join(archive.place.name for archive in archives)
