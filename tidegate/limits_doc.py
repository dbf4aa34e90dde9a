"""docs/limits.md, made from `relay/model/limits.py`: `python -m tidegate.limits_doc > docs/limits.md`."""

from __future__ import annotations

import ast
import inspect

from relay.model import limits

HEAD = """# Limits

Every bound of Tidegate, with its default and what happens at it. Made from `relay/model/limits.py` by `make docs`; a test keeps it true.
"""


def render() -> str:
    """The page, ending in a newline."""
    tree = ast.parse(inspect.getsource(limits))
    return HEAD + "".join(_section(node) for node in tree.body if isinstance(node, ast.ClassDef))


def _section(struct: ast.ClassDef) -> str:
    rows = ["", f"## {struct.name}", "", _flat(ast.get_docstring(struct)), "", "| setting | default | meaning |", "|---|---|---|"]
    for field, after in zip(struct.body, struct.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value is not None:
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            rows.append(f"| `{field.target.id}` | `{ast.unparse(field.value)}` | {_flat(text)} |")
    return "\n".join(rows) + "\n"


def _flat(text: object) -> str:
    return " ".join(str(text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(render(), end="")
