"""Bring archives: several at once, each locked, checked against its edition, and put in place only when right."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue, SimpleQueue
from threading import Event, Thread

from filelock import FileLock, Timeout

from finetune.errors import InputError
from finetune.fetch.download import Patience, download
from finetune.fetch.part import Part, SourceError, Stopped, copy, hash_file
from finetune.fetch.transfer import Transfer, display, size
from finetune.fetch.wanted import Wanted

_AT_ONCE = 4  # archives
_LOOK = 0.1  # seconds between two looks at how far they are
_LAST = 0.5  # seconds that they have to leave in order when stopped


def fetch(archives: Sequence[Wanted], patience: Patience | None = None, say: Callable[[str], None] = print) -> None:
    """Put each archive in its place, saying how; one that is there and right is left as it is.

    A download that breaks, is stopped or is killed leaves `.<archive>.part`, from which the next call goes on.

    Raises:
        InputError: of each archive that could not be had, in one sentence; the others are in place.
    """
    jobs = [archive for archive in archives if archive.sources or os.path.lexists(archive.place)]
    faults = _without_source([archive for archive in archives if archive not in jobs])
    todo: SimpleQueue[tuple[Wanted, Transfer]] = SimpleQueue()
    over: Queue[str | BaseException] = Queue()
    stop = Event()
    transfers = [Transfer(f"{archive.dataset.name}/{archive.place.name}") for archive in jobs]
    for job in zip(jobs, transfers, strict=True):
        todo.put(job)

    def work() -> None:
        while not stop.is_set():
            try:
                archive, transfer = todo.get_nowait()
            except Empty:
                return
            outcome: str | BaseException
            try:
                outcome = _bring(archive, transfer, patience or Patience(), stop)
            except BaseException as fault:
                outcome = fault
            transfer.state = ""
            over.put(outcome)

    # Daemons: a thread that waits for a silent server must not keep a stopped process alive.
    threads = [Thread(target=work, daemon=True) for _ in range(min(_AT_ONCE, len(jobs)))]
    shown = display(say)

    def look() -> None:
        shown.show([transfer for transfer in transfers if transfer.state])

    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            outcome = _next(over, look)
            look()
            if isinstance(outcome, str):
                shown.say(outcome)
            elif isinstance(outcome, InputError):
                faults.append(str(outcome))
            else:
                raise outcome
    except BaseException:
        stop.set()
        shown.say("fetch: stopped; what has come is kept, and the same command goes on from there")
        patient = time.monotonic() + _LAST
        for thread in threads:
            if thread.is_alive():  # not where a signal came before it was started
                thread.join(max(patient - time.monotonic(), 0))
        raise
    finally:
        shown.close()
    if faults:
        count = f"{len(faults)} faults: " if len(faults) > 1 else ""
        raise InputError(count + "; and ".join(faults))


def _next(over: "Queue[str | BaseException]", meanwhile: Callable[[], None]) -> str | BaseException:
    while True:
        try:
            return over.get(timeout=_LOOK)
        except Empty:
            meanwhile()


def _without_source(archives: Sequence[Wanted]) -> list[str]:
    """A sentence for each data set that has archives without a source."""
    names: dict[str, list[Wanted]] = {}
    for archive in archives:
        names.setdefault(archive.dataset.name, []).append(archive)
    return [
        f"{lacking[0].place.parent}: {lacking[0].dataset.title} has no live link to its {lacking[0].edition} edition; "
        f"bring {', '.join(archive.place.name for archive in lacking)} with `finetune fetch {name} --from FOLDER`, or "
        f"list links under datasets.{name}.sources in params.yaml"
        for name, lacking in names.items()
    ]


def _bring(archive: Wanted, transfer: Transfer, patience: Patience, stop: Event) -> str:
    """One archive; what is to be said about it."""
    place = archive.place
    try:
        if os.path.lexists(place):
            return _found_there(archive, transfer, stop)
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place, transfer, stop):
            if os.path.lexists(place):
                return _found_there(archive, transfer, stop)
            clauses = []
            for source in archive.sources:
                try:
                    return (_downloaded if "://" in source else _copied)(archive, source, transfer, patience, stop)
                except SourceError as fault:
                    clauses.append(f"{source} {fault}")
    except OSError as error:
        raise InputError(
            f"{error.filename or place}: {error.strerror}; make that right, then repeat the command"
        ) from None
    name = archive.dataset.name
    raise InputError(
        f"{place}: could not be had: {', '.join(clauses)}; bring it with `finetune fetch {name} --from FILE`, or list "
        f"another link under datasets.{name}.sources in params.yaml"
    )


def _found_there(archive: Wanted, transfer: Transfer, stop: Event) -> str:
    if not archive.place.is_file():
        raise InputError(f"{archive.place}: is no file, expected the archive; move it away, then repeat the command")
    if archive.md5 is None:
        return f"{archive.place}: already there"
    found = hash_file(archive.place, transfer, stop, "checks").hexdigest()
    if found != archive.md5:
        raise InputError(
            f"{archive.place}: is there with {archive.named(found)}, expected {archive.md5} of the {archive.edition} "
            "edition, and was left as it is; move it away, then repeat the command"
        )
    return f"{archive.place}: already there, md5 right"


def _downloaded(archive: Wanted, url: str, transfer: Transfer, patience: Patience, stop: Event) -> str:
    while True:
        with _part(archive, transfer, stop) as part:
            before = part.size
            if before and part.md5 == archive.md5:
                return _put(archive, part, "what an earlier fetch left", transfer)
            download(url, part, transfer, patience, stop, checked=archive.md5 is not None)
            found = part.md5
            if archive.md5 in (None, found):
                return _put(archive, part, url, transfer)
            part.discard()
        # What came before may have been of another file: then the source deserves a try from the first byte.
        if not before:
            raise _wrong(archive, found)


def _copied(archive: Wanted, source: str, transfer: Transfer, _: Patience, stop: Event) -> str:
    path = Path(source)
    try:
        found = hash_file(path, transfer, stop, "checks the original").hexdigest()
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror})") from None
    if archive.md5 not in (None, found):
        raise _wrong(archive, found)
    with _part(archive, transfer, stop) as part:
        copy(path, part)
        if part.md5 == found:
            return _put(archive, part, source, transfer)
        part.discard()
    raise SourceError("changed while it was copied")


def _put(archive: Wanted, part: Part, source: str, transfer: Transfer) -> str:
    if os.path.lexists(archive.place):
        raise InputError(f"{archive.place}: came from elsewhere meanwhile and was left as it is; repeat the command")
    part.move(archive.place)
    right = f"md5 {part.md5}" if archive.md5 is None else "md5 right"
    return f"{archive.place}: {size(part.size)} from {source}, {size(transfer.rate())}/s, {right}"


def _wrong(archive: Wanted, found: str) -> SourceError:
    return SourceError(
        f"gave a file of {archive.named(found)}, expected {archive.md5} of the {archive.edition} edition"
    )


@contextmanager
def _part(archive: Wanted, transfer: Transfer, stop: Event) -> Iterator[Part]:
    part = Part(archive.place.with_name(f".{archive.place.name}.part"), transfer, stop)
    try:
        yield part
    finally:
        part.close()
        if not part.size:
            part.discard()


@contextmanager
def _alone(place: Path, transfer: Transfer, stop: Event) -> Iterator[None]:
    """Wait until no other fetch brings this archive. The lock dies with its process."""
    path = place.with_name(f".{place.name}.lock")
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_LOOK)
        except Timeout:
            transfer.begin("waits for another fetch of it", None)
            if stop.is_set():
                raise Stopped from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever waits for it makes a new one
        lock.release()
