"""A process by a name that no other has while the machine is up: `host:pid:beginning`."""

import os
import platform
import re

from finetune import starter


def this_process() -> str:
    return f"{platform.node()}:{os.getpid()}:{starter.beginning(os.getpid())}"


def may_be_alive(name: str) -> bool:
    """Whether the process of that name may still run; on another machine there is no telling."""
    found = re.fullmatch(r"(.+?):(\d+):?(\d*)", name)
    return found is not None and (found[1] != platform.node() or starter.lives(int(found[2]), found[3]))
