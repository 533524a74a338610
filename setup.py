"""How the pack becomes one installable package: settings stand in pyproject.toml, the list of its files here.

ComfyUI loads the repository's root itself as the package, so the root is also what installs as `draftattention`, with
the core and the kernels below it. The nodes stay out: only ComfyUI can use them, and it loads them from its own copy.
"""

from __future__ import annotations

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

NAME = "draftattention"
FOLDERS = ("draftattn_core", "kernels")


class BuildPackage(build_py):
    """Takes `__init__.py` alone of the root's own files: run.py and others beside it are for a checkout."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found: list[tuple[str, str, str]] = super().find_package_modules(package, package_dir)
        return [module for module in found if package != NAME or module[1] == "__init__"]


below = find_packages(include=[pattern for folder in FOLDERS for pattern in (folder, f"{folder}.*")])
setup(
    packages=[NAME, *(f"{NAME}.{package}" for package in below)],
    package_dir={NAME: "."},
    package_data={f"{NAME}.kernels": ["tuned/*.json"]},
    cmdclass={"build_py": BuildPackage},
)
