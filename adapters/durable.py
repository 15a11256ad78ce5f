"""What is on the disk for good. Knows nothing of what lies there."""

import os
from pathlib import Path


def sync_to_disk(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before this returns.

    Raises:
        OSError: the disk did not take them. Trying again proves nothing: the kernel may have dropped them by then.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
