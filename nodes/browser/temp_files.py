"""Files for the browser where the host keeps its previews: its own route serves them, a restart removes them."""

from __future__ import annotations

import uuid
from pathlib import Path

PREFIX = "draftattention_"
# Of all files together: a run's draft maps are some ten megabytes. The browser says so where a file has gone.
MAX_BYTES = 1 << 29


def keep_for_browser(data: bytes, suffix: str) -> dict[str, str]:
    """Write a file into the host's temporary folder; returns its name in the form the host's route for files asks for.

    The oldest of the pack's files go where all of them are more than `MAX_BYTES`.

    Args:
        suffix: of the file's name, without the dot.
    """
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{PREFIX}{uuid.uuid4().hex}.{suffix}"
    (folder / name).write_bytes(data)
    _make_room(folder, name)
    return {"filename": name, "subfolder": "", "type": "temp"}


def _make_room(folder: Path, newest: str) -> None:
    """Remove the pack's oldest files from a folder until the rest is small enough; never the newest."""
    files = []
    for path in folder.glob(f"{PREFIX}*"):
        try:
            found = path.stat()
        except OSError:  # removed meanwhile
            continue
        files.append((found.st_mtime_ns, found.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MAX_BYTES:
            return
        if path.name != newest:
            path.unlink(missing_ok=True)
            total -= size
