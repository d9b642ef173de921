"""The folder that a demo leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bayesode.errors import DataError


def made_folder(out: str | Path) -> Path:
    """The folder `out`, made if it does not exist.

    Raises:
        DataError: If it cannot be made.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be made: {error}") from error
    return folder


def write_scores(folder: Path, scores: dict[str, Any]) -> None:
    """`scores.json` of a folder."""
    (folder / "scores.json").write_text(json.dumps(scores, indent=1))
