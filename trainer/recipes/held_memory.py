"""How much memory is held, and how much there is: of the device on a GPU, else of the process and its container."""

import resource
from pathlib import Path
from typing import Final

import torch

STATUS: Final = Path("/proc/self/status")
CLEAR: Final = Path("/proc/self/clear_refs")
MEMINFO: Final = Path("/proc/meminfo")
CGROUP: Final = Path("/sys/fs/cgroup")


def held_bytes() -> int:
    """Now."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_reserved())
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """The most since the start, or since `forget_peak`."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Begin to look for the peak anew; where the system has no such thing, it stays what it was."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        CLEAR.write_text("5")
    except OSError:
        return


def limit_bytes() -> int:
    """What the process may come to hold: what it holds now, and what is free for it besides."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return int(torch.cuda.memory_reserved() + free)
    return held_bytes() + min((free for free in (_available(), _left_in_container()) if free is not None), default=0)


def _available() -> int | None:
    return _field(MEMINFO, "MemAvailable")


def _left_in_container() -> int | None:
    """By cgroup v2, then v1; None where there is no limit. Cached files count as free: the kernel drops them."""
    for folder, most, used in (
        (CGROUP, "memory.max", "memory.current"),
        (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            left = int((folder / most).read_text()) - int((folder / used).read_text())
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # not there, or "max"
            continue
        return max(0, left + int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0)))
    return None


def _status(name: str) -> int | None:
    return _field(STATUS, name)


def _field(path: Path, name: str) -> int | None:
    """A line such as `VmHWM:   1234 kB`, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
