"""What the guest book keeps."""

from django.conf import settings
from django.db import models


class Entry(models.Model):
    """One signed line in the book."""

    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="entries"
    )
    text = models.CharField(max_length=280)
    written_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-written_at", "-id")
        verbose_name_plural = "entries"

    def __str__(self) -> str:
        """Return the line as the admin lists it."""
        return self.text
