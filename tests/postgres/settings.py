"""Settings of the programs: testproject's on PostgreSQL, changed by ``TEST_SETTINGS``."""

import ast
import os
from typing import Any

from testproject.settings import *  # noqa: F403
from testproject.settings import DATABASES as PROJECT_DATABASES

changes: dict[str, Any] = ast.literal_eval(os.environ["TEST_SETTINGS"])
ASYNCBRIDGE = changes.pop("ASYNCBRIDGE", {})
database: dict[str, Any] = {**PROJECT_DATABASES["default"]}
database["OPTIONS"] = {**database["OPTIONS"], **changes.pop("OPTIONS", {})}
DATABASES = {"default": {**database, **changes}}
ROOT_URLCONF = "tests.postgres.site"
DEBUG = False
