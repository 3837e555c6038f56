"""Draw the workflow's rules as an SVG from `snakemake --rulegraph mermaid-js` on stdin.

A rule's column is its distance from the first input; an arrow leads from a rule to those that read
its outputs.

Usage: snakemake all --rulegraph mermaid-js | python tools/dag.py OUT.svg
"""

import re
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt

mpl.use("agg")
mpl.rcParams["svg.hashsalt"] = "cda"  # equal graphs give equal files

LINE = {"squeeze", "recover", "relabel", "validate"}
STAGES = LINE | {"expert", "distill", "score", "continual"}


def read(text: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Names of the nodes, and edges between node ids."""
    names = dict(re.findall(r"^\s*(id\d+)\[([^\]]+)\]", text, re.MULTILINE))
    return names, re.findall(r"^\s*(id\d+) --> (id\d+)", text, re.MULTILINE)


def depths(names: dict[str, str], edges: list[tuple[str, str]]) -> dict[str, int]:
    """Longest path from a node without inputs to each node."""
    depth = dict.fromkeys(names, 0)
    for _ in names:
        for source, target in edges:
            depth[target] = max(depth[target], depth[source] + 1)
    return depth


def essential(names: dict[str, str], edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The edges without those that a longer path implies, except into stages."""
    reach = {node: {target for source, target in edges if source == node} for node in names}
    for _ in names:
        reach = {
            node: near | {far for step in near for far in reach[step]}
            for node, near in reach.items()
        }
    steps = {
        (source, target): {step for first, step in edges if first == source} - {target}
        for source, target in edges
    }
    return [
        e
        for e in edges
        if names[e[1]] in STAGES or not any(e[1] in reach[step] for step in steps[e])
    ]


def positions(names: dict[str, str], depth: dict[str, int]) -> dict[str, tuple[float, float]]:
    """Each node's position: column by depth, the stages on one line and other rules around it."""
    spots = {}
    for column in sorted(set(depth.values())):
        here = sorted(
            (n for n in names if depth[n] == column), key=lambda n: (names[n] not in LINE, names[n])
        )
        for index, node in enumerate(here):
            side = 1 if index % 2 else -1
            spots[node] = (column * 1.9, side * ((index + 1) // 2) * 0.9)
    return spots


def draw(names: dict[str, str], edges: list[tuple[str, str]], out: str) -> None:
    """Write the picture."""
    spots = positions(names, depths(names, edges))
    edges = essential(names, edges)
    columns = max(x for x, _ in spots.values())
    low, high = min(y for _, y in spots.values()) - 1.0, max(y for _, y in spots.values()) + 1.0
    figure, axis = plt.subplots(
        figsize=(1.1 * columns + 1.6, 0.75 * (high - low)), layout="constrained"
    )
    for source, target in edges:
        far = abs(spots[source][0] - spots[target][0]) > 2
        bend = 0.0 if not far else 0.16 if spots[source][1] < 0 else -0.16
        arrow = {
            "arrowstyle": "-|>",
            "color": "0.55",
            "shrinkA": 24,
            "shrinkB": 26,
            "connectionstyle": f"arc3,rad={bend}",
        }
        axis.annotate("", xy=spots[target], xytext=spots[source], arrowprops=arrow)
    for node, (x, y) in spots.items():
        colour = "#cfe3f5" if names[node] in STAGES else "#f3ead3"
        box = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": "0.35"}
        axis.text(
            x, y, names[node].replace("_page", ""), ha="center", va="center", fontsize=10, bbox=box
        )
    axis.set_xlim(-0.9, columns + 0.9)
    axis.set_ylim(low, high)
    axis.axis("off")
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    draw(*read(sys.stdin.read()), sys.argv[1])
