"""What a publisher hands over, as pairs of name and bytes: a folder, or an archive read member by member; or parts."""

from adapters.upload.archives import archive_members
from adapters.upload.members import Member, folder_members
from adapters.upload.parts import append_part, cut_back, require_digests

__all__ = ["Member", "append_part", "archive_members", "cut_back", "folder_members", "require_digests"]
