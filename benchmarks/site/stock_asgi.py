"""The project under Django's own ASGI handler, in a process that must not know this package."""

import sys

from django.core.asgi import get_asgi_application

from benchmarks.bench import BenchmarkError

application = get_asgi_application()

if "django_asyncbridge" in sys.modules:
    raise BenchmarkError("django_asyncbridge has been imported: this is not stock Django any more")
