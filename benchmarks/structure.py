"""The shape of the package in numbers: `python -m benchmarks.structure [FOLDER ...]`.

Prints files per folder, the longest files, the lengths of functions, formatter exceptions, and private names of Ray.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import click

_LONG_FILE = 400  # lines
_LONG_FUNCTION = 40  # lines
_PRIVATE_OF_RAY = re.compile(r"\bray(?:\.\w+)*\._\w+|from ray[\w.]*\._\w+ import|_system_config|controller\.\w+")


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, exists=True))
def main(folders: tuple[Path, ...]) -> None:
    files = sorted(file for folder in folders or (Path("mlic"),) for file in folder.rglob("*.py"))
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    print(f"{len(files)} files, {sum(map(lines, texts.values())):,} lines")
    per_folder = Counter(file.parent for file in files if file.name != "__init__.py")
    print("files per folder:", ", ".join(f"{folder} {count}" for folder, count in per_folder.most_common()))
    long = {file: lines(text) for file, text in texts.items() if lines(text) > _LONG_FILE}
    print(f"files above {_LONG_FILE} lines:", ", ".join(f"{file} {count}" for file, count in long.items()) or "none")
    functions = [(size, f"{file}:{name}") for file, text in texts.items() for name, size in function_sizes(text)]
    sizes = [size for size, _ in functions]
    print(
        f"{len(sizes):,} functions: median {median(sizes):g} lines, p90 {quantiles(sizes, n=10)[-1]:g}, "
        f"longest {max(functions)[0]} ({max(functions)[1]}), {sum(size > _LONG_FUNCTION for size in sizes)} above "
        f"{_LONG_FUNCTION}"
    )
    print("fmt: skip:", sum(text.count("# fmt: skip") for text in texts.values()))
    for file, text in texts.items():
        for number, line in enumerate(text.splitlines(), start=1):
            if match := _PRIVATE_OF_RAY.search(line):
                print(f"private name of Ray: {file}:{number}: {match[0]}")


def lines(text: str) -> int:
    return text.count("\n")


def function_sizes(text: str) -> Iterator[tuple[str, int]]:
    """The name and the lines of each function, its decorators left out and its docstring counted."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


if __name__ == "__main__":
    main()
