"""Every public function, method and class has a docstring, and what it explains is there; the rest is for a reader to judge."""

import ast
import re
from pathlib import Path

import pytest

from wsss_lib.parameters import PROJECT_ROOT

FILES = sorted(path for package in ("wsss_lib", "data_prep") for path in (PROJECT_ROOT / package).rglob("*.py"))
NAMES = [path.relative_to(PROJECT_ROOT).as_posix() for path in FILES]
Function = ast.FunctionDef | ast.AsyncFunctionDef
HEAD = re.compile(r"((?:\*{0,2}\w+, )*\*{0,2}\w+): \S")  # `name: text` or `one, other: text`


def sections(docstring: str) -> dict[str, list[str]]:
    """Return the lines below Args:, Returns: and Raises:, without those of the next paragraph; indented as they are."""
    found, current = {}, None
    for line in docstring.splitlines():
        title = re.fullmatch(r"(Args|Returns|Yields|Raises):", line)
        if title:
            current = found.setdefault(title[1], [])
        elif current is not None and line.startswith("    "):
            current.append(line[4:])
        elif line.strip():
            current = None
    return found


def heads(lines: list[str]) -> list[str]:
    """Return the names that are explained in a section, leaving out the lines that continue a text."""
    matches = [HEAD.match(line) for line in lines if not line.startswith(" ")]
    return [name.lstrip("*") for match in matches if match for name in match[1].split(", ")]


def parameters(function: Function, is_method: bool) -> list[str]:
    """Return the names of a function's parameters without self or cls."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    static = any(isinstance(decorator, ast.Name) and decorator.id == "staticmethod" for decorator in function.decorator_list)
    names = names[1:] if is_method and not static else names
    names += [argument.arg for argument in (arguments.vararg, *arguments.kwonlyargs, arguments.kwarg) if argument]
    return names


def own_nodes(function: Function) -> list[ast.AST]:
    """Return the nodes of a function's body, without those of the functions and classes defined in it."""
    nodes, waiting = [], list(function.body)
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return nodes


def raised(function: Function) -> set[str]:
    """Return the names of the exceptions that a function itself raises; "" for one that it only hands on."""
    causes = [node.exc for node in own_nodes(function) if isinstance(node, ast.Raise)]
    names = [ast.unparse(cause.func if isinstance(cause, ast.Call) else cause) if cause else "" for cause in causes]
    return {name.rsplit(".", 1)[-1] if name.rsplit(".", 1)[-1][:1].isupper() else "" for name in names}


def gaps(docstring: str | None, function: Function | None, is_method: bool) -> list[str]:
    """Say what a docstring lacks; `function` is None for a class without a constructor of its own."""
    if not docstring:
        return ["no docstring"]
    found, problems = sections(docstring), []
    summary = docstring.splitlines()[0]
    if not summary.rstrip().endswith((".", "?", ":")):
        problems.append("the first line is no whole sentence")
    if function is None:
        return problems
    wanted, explained = parameters(function, is_method), heads(found.get("Args", []))
    problems += [f"Args: explains {name}, which is not a parameter" for name in explained if name not in wanted]
    reasons = found.get("Raises", [])
    problems += [
        f"Raises: lacks {name}" for name in sorted(raised(function)) if name and reasons and name not in heads(reasons)
    ]
    return problems


def defects(source: str) -> list[str]:
    """Say what is missing in the docstrings of a file's public functions, methods and classes."""

    def walk(body: list[ast.stmt], owner: str) -> list[str]:
        result = []
        for node in body:
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
                continue
            name = f"{owner}{node.name}"
            if isinstance(node, ast.ClassDef):  # what the constructor takes stands in the docstring of its class
                constructor = next(
                    (member for member in node.body if isinstance(member, Function) and member.name == "__init__"), None
                )
                result += [f"{name}: {problem}" for problem in gaps(ast.get_docstring(node), constructor, True)]
                result += walk(node.body, f"{name}.")
            else:
                result += [f"{name}: {problem}" for problem in gaps(ast.get_docstring(node), node, bool(owner))]
        return result

    tree = ast.parse(source)
    return (["no docstring of the module"] if not ast.get_docstring(tree) else []) + walk(tree.body, "")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_docstrings_are_complete(path: Path):
    assert defects(path.read_text(encoding="utf-8")) == []


COMPLETE = '''
"""A module."""

class Scale:
    """A factor with a limit.

    Args:
        factor, limit: both floats.
    """

    def __init__(self, factor, limit):
        self.factor, self.limit = factor, limit

    def apply(self, value: float, *others: float) -> float:
        """Scale values.

        Args:
            value: any float; it may
                need two lines: as here.
            others: any floats.

        Returns:
            float, at most the limit.

        Raises:
            ValueError: the value is negative.
        """
        if value < 0:
            raise ValueError("negative")
        return min(self.factor * value, self.limit)

    @property
    def half(self) -> float:
        """Return the half of the factor."""
        return self.factor / 2

def _private(a, b):
    return a
'''


def test_a_complete_file_has_no_defects():
    assert defects(COMPLETE) == []


@pytest.mark.parametrize(
    "old, new, defect",
    [
        ('"""A module."""', "", "no docstring of the module"),
        ('"""Return the half of the factor."""', "pass", "Scale.half: no docstring"),
        (
            "            value: any float",
            "            values: any float",
            "Scale.apply: Args: explains values, which is not a parameter",
        ),
        (
            "            others: any",
            "            more: floats\n            others: any",
            "Scale.apply: Args: explains more, which is not a parameter",
        ),
        (
            "            ValueError: the value is negative.",
            "            TypeError: the value is not a number.",
            "Scale.apply: Raises: lacks ValueError",
        ),
        ("Scale values.", "Scale", "Scale.apply: the first line is no whole sentence"),
    ],
)
def test_each_gap_is_found(old: str, new: str, defect: str):
    assert COMPLETE.count(old) == 1
    assert defect in defects(COMPLETE.replace(old, new))


def test_public_names_are_really_read():
    """A walk that found nothing would pass every other test."""
    found = [
        node
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    assert len(found) > 150
