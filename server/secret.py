"""The server's own secret: made once, kept beside the registry, readable by its owner alone."""

import secrets
from pathlib import Path

SIZE_BYTES = 32


def read_or_make_secret(home: Path) -> bytes:
    """The secret in `home/server.secret`, made if there is none. Two servers that start at once get the same."""
    path = home / "server.secret"
    if not path.exists():
        staged = home / f".server.secret.{secrets.token_hex(8)}"
        staged.touch(mode=0o600, exist_ok=False)
        staged.write_bytes(secrets.token_bytes(SIZE_BYTES))
        try:
            path.hardlink_to(staged)  # whole or not at all, and never over another's
        except FileExistsError:
            pass
        finally:
            staged.unlink()
    return path.read_bytes()
