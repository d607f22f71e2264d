"""Who holds a claim on a call, and whether that process still lives."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
from contextlib import suppress
from functools import cache
from pathlib import Path

_active: set[str] = set()  # runs of this process


def new_owner() -> str:
    """Name a run of this process: machine and boot, process id, its start time, and a random part."""
    pid = os.getpid()
    owner = f"{_machine()}:{pid}:{_started(pid) or ''}:{secrets.token_hex(4)}"
    _active.add(owner)
    return owner


def retire(owner: str) -> None:
    """Say that a run of this process has ended, so that claims it could not give back are void."""
    _active.discard(owner)


def is_alive(owner: str) -> bool | None:
    """Tell whether the run behind an owner goes on.

    Args:
        owner: What `new_owner` returned, perhaps in another process.

    Returns:
        True or False for a process of this machine since its last start; None where that cannot be seen (another
        machine or container, or Windows): the claim's lease decides then.
    """
    machine, pid, started, _ = owner.split(":")
    if os.name != "posix" or machine != _machine():
        return None
    if int(pid) == os.getpid() and started == (_started(int(pid)) or ""):
        return owner in _active
    if Path("/proc/self/stat").exists():
        return _started(int(pid)) == started  # a process id may have been given to another process since
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@cache
def _machine() -> str:
    """Digest of what separates this process's view of process ids from any other: host, boot, namespace."""
    parts = [platform.node()]
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    with suppress(OSError):
        parts += [boot.read_text().strip(), str(namespace.readlink())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _started(pid: int) -> str | None:
    """Start time of a running process in clock ticks since boot; None if it is gone (a zombie is gone)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return None if fields[0] in "ZX" else fields[19]
