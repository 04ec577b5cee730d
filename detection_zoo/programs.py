"""The installed commands: Ctrl-C is handled before their modules are imported."""

from __future__ import annotations

from detection_zoo.zoo.entry import begin_command


def detection_zoo() -> None:
    """The command `detection-zoo`, which is bench.py of a checkout."""
    begin_command()
    from detection_zoo.bench import main

    main()


def download_weights() -> None:
    """The command `download-weights`, which is download_weights.py of a checkout."""
    begin_command()
    from detection_zoo.download_weights import main

    main()
