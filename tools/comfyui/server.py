"""A headless ComfyUI server for a while: started on a free port with a folder of its own, stopped at the end.

The user's ComfyUI is only run, never written to: input, output, temp, user files and the pack's copy lie in a
temporary base folder. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tools.comfyui.path import PACK_ROOT, ComfyUIInstall

START_TIMEOUT = 600.0
PACK_PARTS = (
    "__init__.py",
    "pyproject.toml",
    "nodes",
    "draftattn_core",
    "kernels",
    "locales",
    "web",
)
_PROGRESS = re.compile(r"(\d+)/(\d+) \[")


class ComfyUIError(RuntimeError):
    """The server did not start, refused a workflow or failed in it; the message says why."""


def copy_pack(target: Path) -> None:
    """The parts of the pack that ComfyUI loads, as an install would put them into custom_nodes."""
    for part in PACK_PARTS:
        source = PACK_ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / part)


class ComfyUIServer:
    """`with ComfyUIServer(install, models) as server:`; CPU only.

    Args:
        install: which ComfyUI.
        models: checkpoint files to offer under models/diffusion_models.
        options: further command-line options of ComfyUI's main.py.
        environment: further environment variables of its process.
        pack: puts the pack into the folder it is given.
    """

    def __init__(
        self,
        install: ComfyUIInstall,
        models: Iterable[Path] = (),
        options: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        pack: Callable[[Path], object] = copy_pack,
    ) -> None:
        self.install, self.models, self.options, self.pack = install, tuple(models), tuple(options), pack
        self.environment = {**os.environ, **(environment or {})}
        self.base = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyUIServer:
        self.base = Path(tempfile.mkdtemp(prefix="draftattention-comfyui-"))
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def output(self) -> Path:
        return self.base / "output"

    def log(self) -> str:
        """What the server has printed so far."""
        path = self.base / "server.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def _start(self) -> None:
        folder = self.base / "models" / "diffusion_models"
        folder.mkdir(parents=True)
        for model in self.models:
            shutil.copy(model, folder / model.name)
        self.pack(self.base / "custom_nodes" / "draftattention")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [str(self.install.python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--disable-auto-launch", "--base-directory", str(self.base)]
        command += ["--database-url", f"sqlite:///{(self.base / 'comfyui.db').as_posix()}", *self.options]
        with (self.base / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.install.path,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise ComfyUIError(f"ComfyUI ended while starting; the end of its log:\n{self.log()[-2000:]}")
            try:
                self.get("/system_stats")
                break
            except (OSError, ValueError):
                time.sleep(0.5)
        else:
            raise ComfyUIError(f"ComfyUI did not answer within {START_TIMEOUT:.0f} s")
        if "IMPORT FAILED" in self.log():
            raise ComfyUIError(f"ComfyUI could not load the pack; its log says:\n{self.log()[-3000:]}")

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.base, ignore_errors=True)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def submit(self, prompt: dict[str, Any]) -> str:
        """Queue a workflow in API form; returns its id.

        Raises:
            ComfyUIError: if ComfyUI finds it invalid, or a part of it, which it would leave out; with its reasons.
        """
        body = json.dumps({"prompt": prompt}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                accepted = json.load(answer)
        except urllib.error.HTTPError as error:
            reasons = error.read().decode(errors="replace")
            raise ComfyUIError(f"ComfyUI refused the workflow: {reasons[:2000]}") from error
        if accepted.get("node_errors"):
            reasons = json.dumps(accepted["node_errors"])
            raise ComfyUIError(f"ComfyUI refused a part of the workflow: {reasons[:2000]}")
        return str(accepted["prompt_id"])

    def run(
        self, prompt: dict[str, Any], on_step: Callable[[int, int], None] = lambda done, of: None
    ) -> dict[str, Any]:
        """Run a workflow to its end; returns its outputs by node id.

        Args:
            prompt: workflow in API form.
            on_step: told (steps done, steps) as the sampler's progress line in the log moves.

        Raises:
            ComfyUIError: if a node fails, with its exception, or the server ends.
        """
        offset = len(self.log())
        ident = self.submit(prompt)
        while True:
            if self._process is None or self._process.poll() is not None:
                raise ComfyUIError(f"ComfyUI ended during a workflow; the end of its log:\n{self.log()[-2000:]}")
            found = _PROGRESS.findall(self.log()[offset:])
            if found:
                on_step(int(found[-1][0]), int(found[-1][1]))
            entry = self.get(f"/history/{ident}").get(ident)
            if entry is not None and entry["status"]["completed"]:
                return dict(entry["outputs"])
            if entry is not None and entry["status"]["status_str"] == "error":
                raise ComfyUIError(_failure(entry["status"]["messages"]))
            time.sleep(0.3)


def _failure(messages: list[Any]) -> str:
    for kind, details in messages:
        if kind == "execution_error":
            return f"node {details['node_type']} failed: {details['exception_type']}: {details['exception_message']}"
    return "ComfyUI reports an error without saying which"
