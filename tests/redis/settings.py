"""Settings of the servers: testproject's, with a channel layer where the test says."""

import os
from pathlib import Path

from testproject.settings import *  # noqa: F403
from testproject.settings import DATABASES as PROJECT_DATABASES

DEBUG = False
# Of its own: the servers look for migrations when they start.
DATABASES = {
    "default": {
        **PROJECT_DATABASES["default"],
        "NAME": Path(os.environ["TEST_DIRECTORY"]) / "db.sqlite3",
    }
}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {
            "hosts": [os.environ["TEST_REDIS"]],
            "prefix": os.environ["TEST_PREFIX"],
            "capacity": 100_000,
            "expiry": 3600,
        },
    }
}
