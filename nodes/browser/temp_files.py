"""Files for the browser where the host keeps its previews: its own route serves them, a restart removes them."""

from __future__ import annotations

import uuid
from pathlib import Path


def keep_for_browser(data: bytes, suffix: str) -> dict[str, str]:
    """Write a file into the host's temporary folder; returns its name in the form the host's route for files asks for.

    Args:
        suffix: of the file's name, without the dot.
    """
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"draftattention_{uuid.uuid4().hex}.{suffix}"
    (folder / name).write_bytes(data)
    return {"filename": name, "subfolder": "", "type": "temp"}
