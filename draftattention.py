"""Makes the pack's folder importable under the name it installs as, whatever the folder is called.

`import draftattention` in that folder finds this file; ComfyUI and pip do not need it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

# Not resolved: a linked folder keeps the place it is linked to.
_ROOT = Path(os.path.abspath(__file__)).parent
_spec = importlib.util.spec_from_file_location(__name__, _ROOT / "__init__.py", submodule_search_locations=[str(_ROOT)])
assert _spec is not None and _spec.loader is not None
# The import system hands out what stands in sys.modules once this file has run.
sys.modules[__name__] = _package = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_package)
