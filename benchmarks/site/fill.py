"""Makes the tables of the measured project, and its rows: ``python -m benchmarks.site.fill``."""

import django
from django.apps import apps
from django.core.management import call_command

from benchmarks.pages import USERS

__all__ = ("main",)


def main() -> None:
    """Fill the database of the settings, which is empty."""
    django.setup()
    call_command("migrate", verbosity=0)
    # Models cannot be imported before.
    user = apps.get_model("auth", "User")
    user.objects.bulk_create(user(pk=number, username=name) for number, name in enumerate(USERS, 1))


if __name__ == "__main__":
    main()
