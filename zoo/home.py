"""The folder for downloads and generated data, chosen by the user. No torch."""

from __future__ import annotations

import os
from pathlib import Path


def home_folder() -> Path:
    """The folder of DETECTION_ZOO_HOME, or the user's cache folder of this platform; it need not exist
    yet."""
    if given := os.environ.get("DETECTION_ZOO_HOME"):
        return expanded(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("detection-zoo", appauthor=False))


def expanded(path: str | Path) -> Path:
    """A path with the user's folder in place of `~`; an unresolvable `~` stays a folder name."""
    return Path(os.path.expanduser(path))
