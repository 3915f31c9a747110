"""The table of values in the chart's README, made of the `# --` lines in values.yaml.

`python helm/values_table.py` writes it; with --check it only says whether it is current.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

CHART = Path(__file__).parent / "triton-controlplane"
BEGINS, ENDS = "<!-- values: begin -->", "<!-- values: end -->"
MARK = "# -- "


@dataclass(frozen=True, slots=True)
class Value:
    """A value: its path with dots, what it is where nothing is said, and what it is for. None: nobody has said."""

    path: str
    default: object
    text: str | None


def values(source: str) -> Iterator[Value]:
    """Every value of a values.yaml, in its order. What has a `# --` line is one value, whatever it holds."""
    lines = source.splitlines()
    said = {
        number + 1: line.strip().removeprefix(MARK)
        for number, line in enumerate(lines)
        if line.strip().startswith(MARK)
    }
    root = yaml.compose(source, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise TypeError("values.yaml holds no mapping")
    yield from _walk(root, yaml.safe_load(source), said, "")


def _walk(node: yaml.MappingNode, data: dict[str, object], said: dict[int, str], prefix: str) -> Iterator[Value]:
    for key, inner in node.value:
        path = prefix + key.value
        default = data[key.value]
        text = said.get(key.start_mark.line)
        if text is None and isinstance(inner, yaml.MappingNode) and isinstance(default, dict) and default:
            yield from _walk(inner, default, said, f"{path}.")
        else:
            yield Value(path, default, text)


def table(source: str) -> str:
    """The table, in Markdown. Raises ValueError for a value without a `# --` line."""
    rows = ["| value | default | what |", "|---|---|---|"]
    for value in values(source):
        if value.text is None:
            raise ValueError(f"{value.path} has no `# --` line in values.yaml")
        default = json.dumps(value.default, ensure_ascii=False)
        cells = (f"`{value.path}`", f"`{default}`", value.text)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def with_table(readme: str, source: str) -> str:
    """`readme` with the table between its two marks."""
    before, _, rest = readme.partition(BEGINS)
    _, _, after = rest.partition(ENDS)
    if not after:
        raise ValueError(f"README.md has no place for the table: {BEGINS} … {ENDS}")
    return f"{before}{BEGINS}\n{table(source)}\n{ENDS}{after}"


def main() -> int:
    """Write the table, or check it."""
    path = CHART / "README.md"
    present = path.read_text()
    wanted = with_table(present, (CHART / "values.yaml").read_text())
    if "--check" in sys.argv[1:]:
        if present != wanted:
            sys.stderr.write("the values table is not current: python helm/values_table.py\n")
        return int(present != wanted)
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
