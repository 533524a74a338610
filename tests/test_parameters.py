"""No function of the product takes more than twelve parameters; Triton's kernels and node schemas have to."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST = 12


def is_kernel(function: ast.FunctionDef) -> bool:
    """Whether it is decorated with `triton.jit`, with options or without."""
    decorators = (x.func if isinstance(x, ast.Call) else x for x in function.decorator_list)
    return any(isinstance(x, ast.Attribute) and x.attr == "jit" for x in decorators)


def is_schema(function: ast.FunctionDef) -> bool:
    """Whether its parameters are the inputs of a node."""
    return function.name == "execute"


def too_many(source: str) -> list[str]:
    """Functions with more than `MOST` parameters, methods' own object left out."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) or is_kernel(function):
            continue
        given = function.args
        names = [x.arg for x in (*given.posonlyargs, *given.args, *given.kwonlyargs) if x.arg not in ("self", "cls")]
        if len(names) > MOST and not is_schema(function):
            found.append(f"{function.name} ({len(names)})")
    return found


def test_functions_take_few_parameters() -> None:
    files = [path for folder in ("draftattn_core", "kernels", "nodes") for path in (ROOT / folder).rglob("*.py")]
    assert files
    assert {str(path.relative_to(ROOT)): names for path in files if (names := too_many(path.read_text()))} == {}


def test_one_parameter_too_many_is_seen() -> None:
    parameters = ", ".join(f"x{i}" for i in range(MOST + 1))
    assert too_many(f"def f({parameters}): pass") == ["f (13)"]
    assert too_many(f"def f(x, *, {parameters[4:]}): pass") == ["f (13)"]
    assert too_many(f"class C:\n def f(self, {parameters[4:]}): pass") == []
    assert too_many(f"@triton.jit(do_not_specialize=[])\ndef f({parameters}): pass") == []
