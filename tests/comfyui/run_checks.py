"""Runs in ComfyUI's Python: python run_checks.py COMFYUI MODULE[,MODULE...] OUT.json [NAME...]

Runs the CHECKS of the modules, all or those named; writes {"version": ..., "results": {name: {"outcome", "detail",
"seconds"}}}, beside what the file held before.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from pathlib import Path


def main() -> None:
    comfyui, modules, out, *names = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parent))
    import host

    host.start(comfyui)
    from comfyui_version import __version__

    kept = Path(out)
    results: dict[str, dict[str, object]] = json.loads(kept.read_text())["results"] if kept.exists() else {}
    checks = [item for module in modules.split(",") for item in importlib.import_module(module).CHECKS.items()]
    for name, check in checks:
        if names and name not in names:
            continue
        began = time.perf_counter()
        try:
            check()
            outcome, detail = "passed", ""
        except host.Absent as reason:
            outcome, detail = "skipped", str(reason)
        except Exception:
            outcome, detail = "failed", traceback.format_exc()
        results[name] = {"outcome": outcome, "detail": detail, "seconds": round(time.perf_counter() - began, 2)}
        kept.write_text(json.dumps({"version": __version__, "results": results}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
