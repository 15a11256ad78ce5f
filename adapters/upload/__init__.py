"""What a publisher hands over, as pairs of name and bytes: a folder, or an archive read member by member."""

from adapters.upload.archives import archive_members
from adapters.upload.members import Member, folder_members

__all__ = ["Member", "archive_members", "folder_members"]
