"""Where the project keeps what it fetches or makes: one folder, chosen by the user. No torch."""

from __future__ import annotations

import os
from pathlib import Path


def home_folder() -> Path:
    """The folder of DETECTION_ZOO_HOME, or the user's cache folder of this platform; it need not exist
    yet."""
    if given := os.environ.get("DETECTION_ZOO_HOME"):
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("detection-zoo", appauthor=False))
