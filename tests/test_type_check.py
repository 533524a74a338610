"""The type check sees through the pack's relative imports, in a folder of any name, and tells files by their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.type_check import ROOT, type_check

pytest.importorskip("mypy", reason="mypy is not installed")

FILES = {
    "__init__.py": "",
    "draftattn_core/__init__.py": "",
    "draftattn_core/length.py": "def half(length: int) -> float:\n    return length / 2\n",
    "nodes/__init__.py": "",
    "nodes/node.py": "from ..draftattn_core.length import half\n\nWRONG: str = half(3)\n",
    "run.py": "from draftattention.draftattn_core.length import half\n\nRIGHT: float = half(3)\n",
    "tests/__init__.py": "",
    "tests/run.py": "",
    "tools/tool.py": "import run\n\nALSO_WRONG: str = run.RIGHT\n",
}


def test_errors_are_found_across_relative_imports_and_named_by_place(tmp_path: Path) -> None:
    root = tmp_path / "a pack-1.0"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")

    result = type_check(root)

    errors = [line.replace("\\", "/") for line in result.stdout.splitlines() if ": error:" in line]
    assert [error.partition(": error:")[0] for error in sorted(errors)] == ["nodes/node.py:3", "tools/tool.py:3"], (
        result
    )
    assert (root / ".mypy_cache").is_dir()
