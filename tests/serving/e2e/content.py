"""What the served project answers, for it and for those who ask."""

# Of `site.download`: 64 KiB, so that a piece that is missing or doubled shows.
BLOCK = bytes(range(256)) * 256
# Of `site.work`, sent in three pieces.
WORK_BODY = b"began, went on, ended"
