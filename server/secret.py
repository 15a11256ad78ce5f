"""The server's own secret: made once, kept beside the registry, readable by its owner alone."""

import secrets
from pathlib import Path

from adapters import sync_to_disk
from server.errors import SettingsError

SIZE_BYTES = 32


def read_or_make_secret(home: Path) -> bytes:
    """The secret in `home/server.secret`, made if there is none. Two servers that start at once get the same.

    Raises:
        SettingsError: what is there is no secret of ours; with a short one, tenants could find each other's cache.
    """
    path = home / "server.secret"
    if not path.exists():
        staged = home / f".server.secret.{secrets.token_hex(8)}"
        staged.touch(mode=0o600, exist_ok=False)
        staged.write_bytes(secrets.token_bytes(SIZE_BYTES))
        sync_to_disk(staged)
        try:
            path.hardlink_to(staged)  # whole or not at all, and never over another's
        except FileExistsError:
            pass
        finally:
            staged.unlink()
        sync_to_disk(home)
    secret = path.read_bytes()
    if len(secret) != SIZE_BYTES:
        raise SettingsError(
            f"{path} has {len(secret)} bytes instead of {SIZE_BYTES}: bring it back from a backup, or delete it "
            "and a new one is made",
            code="invalid_secret",
        )
    return secret
