"""One URL -> one part file, going on where an earlier try broke off.

requests speaks HTTP (redirects, proxies, certificates), urllib3's Retry counts tries and says how long to wait. Neither
resumes, and pooch and torchvision.datasets.utils begin at the first byte again, which hurts with 5 GB: so asking for
the rest of a file (RFC 9110: Range, If-Range) is what this module adds.
"""

import re
from dataclasses import dataclass, field
from threading import Event

import requests
import urllib3.exceptions
from urllib3 import Retry

from finetune.fetch.part import Part, SourceError, Stopped
from finetune.fetch.transfer import Transfer, size

_CHUNK = 1 << 20  # bytes at most in one read
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that a later try may not meet


@dataclass(frozen=True)
class Patience:
    """How long to wait, and how many tries that bring nothing new to make after one another."""

    connect: float = 10.0  # seconds until a connection stands
    read: float = 30.0  # seconds without a byte
    retry: Retry = field(default_factory=lambda: Retry(5, backoff_factor=1, backoff_max=60, retry_after_max=60))


class _Broken(Exception):
    """A fault that may pass: what it was, and the seconds that the server asks to wait."""

    def __init__(self, clause: str, wait: float = 0.0) -> None:
        super().__init__(clause)
        self.wait = wait


def download(url: str, part: Part, transfer: Transfer, patience: Patience, stop: Event, checked: bool = True) -> None:
    """The rest of what lies at `url` into `part`; from the first byte where the server cannot, or the file changed.

    Args:
        checked: the whole file's md5 is known, so that bytes of two sources which are not the same file are found out;
            where it is not, what came from another source is thrown away once this one sends.

    Raises:
        SourceError: there is no such file, or try after try brings nothing new.
        InputError, Stopped: as `Part.append`.
    """
    retry, most = patience.retry, part.size
    with requests.Session() as session:
        while True:
            transfer.state = "connects"
            try:
                return _receive(session, url, part, patience, checked)
            except (_Broken, requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as fault:
                clause, wait = _clause(fault, patience), getattr(fault, "wait", 0.0)
            except requests.RequestException as fault:
                raise SourceError(f"cannot be asked ({fault})") from None
            if part.size > most:
                retry, most = patience.retry, part.size
            try:
                retry = retry.increment("GET", url, error=ConnectionError(clause))
            except urllib3.exceptions.MaxRetryError:
                came = f", at {size(part.size)}" if part.size else ""
                raise SourceError(f"{clause}, {len(retry.history) + 1} times{came}") from None
            wait = max(wait, retry.get_backoff_time())
            transfer.state = f"{clause}; tries again" + (f" in {wait:.0f} s" if wait >= 1 else "")
            if stop.wait(wait):
                raise Stopped


def _receive(session: requests.Session, url: str, part: Part, patience: Patience, checked: bool) -> None:
    """One request, and what it brings; returns when the file is whole."""
    headers = {"Accept-Encoding": "identity"}
    same_source = part.origin.get("url") == url
    if part.size and (same_source or checked):
        headers["Range"] = f"bytes={part.size}-"
        if same_source and part.origin.get("validator"):
            headers["If-Range"] = part.origin["validator"]
    with session.get(url, headers=headers, stream=True, timeout=(patience.connect, patience.read)) as response:
        status = response.status_code
        answered = f"answered {status} {response.reason}"
        if status in _PASSING:
            raise _Broken(answered, patience.retry.get_retry_after(response.raw) or 0.0)
        validator = _validator(response)
        total = None
        if part.size and status in (206, 416):
            total = _whole_size(response, part, validator if same_source else None)
        elif status == 200:
            part.restart()
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        else:
            raise SourceError(answered)
        if status == 200 or total is not None:
            part.expect(total, {"url": url, "validator": validator, "total": total}, "downloads")
            # Each read takes what is there: of a connection that breaks, every byte that came is kept. The bytes stay
            # as they are sent: some servers call a .tar.gz "Content-Encoding: gzip", to be unpacked on the way.
            while chunk := response.raw.read1(_CHUNK, decode_content=False):
                part.append(chunk)
            if part.size < (total or 0):
                raise _Broken("broke off")
            return
    part.restart()
    _receive(session, url, part, patience, checked)


def _whole_size(response: requests.Response, part: Part, validator: str | None) -> int | None:
    """The bytes of the whole file, if the answer is what follows `part` in the file that it is of; else None."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or not found or int(found[1]) != part.size:
        return None
    before = part.origin.get("validator")
    if before and validator and before != validator:
        return None
    total = int(found[2])
    return total if part.origin.get("total") in (None, total) else None


def _validator(response: requests.Response) -> str | None:
    """What names this very version of the file; a weak ETag does not."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _clause(fault: BaseException, patience: Patience) -> str:
    """What went wrong, to follow the source's name."""
    if isinstance(fault, _Broken):
        return str(fault)
    if isinstance(fault, requests.ConnectTimeout):
        return f"did not answer within {patience.connect:g} s"
    if isinstance(fault, requests.Timeout | urllib3.exceptions.ReadTimeoutError):
        return f"sent nothing for {patience.read:g} s"
    cause: BaseException | None = fault
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return f"failed ({cause.strerror})"
        cause = cause.__cause__ or cause.__context__
    return "broke off"
