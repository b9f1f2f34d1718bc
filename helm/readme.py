"""Generates parts of the chart: the table of values in its README, from the comments in values.yaml, and the copies of the alerts and
the dashboard, because Helm reads only the chart's own folder. Run it with: python3 helm/readme.py"""

import pathlib
import re
import shutil

CHART = pathlib.Path(__file__).parent / "banmesh"
LEAVES = ("config", "podSecurityContext", "securityContext", "resources", "probes")
COPIES = ("deploy/prometheus/banmesh.rules.yaml", "deploy/grafana/banmesh.json")
BEGIN, END = "<!-- values: made by helm/readme.py -->\n", "<!-- end -->\n"


def rows():
    comment, path = [], []
    for line in (CHART / "values.yaml").read_text().splitlines():
        stripped = line.strip()
        if not stripped:
            comment = []
        elif stripped.startswith("#"):
            comment.append(stripped[1:].strip())
        elif match := re.match(r"( *)([A-Za-z]\w*):(?: (.*))?$", line):
            depth, key, value = len(match[1]) // 2, match[2], match[3]
            path = path[:depth] + [key]
            inside_leaf = any(".".join(path[: n + 1]) in LEAVES for n in range(len(path) - 1))
            if not inside_leaf and (value is not None or path[0] in LEAVES):
                text = " ".join(comment).replace("|", "\\|")
                yield f"| `{'.'.join(path)}` | {f'`{value}`' if value is not None else 'see values.yaml'} | {text} |"
                comment = []
            elif value is None and depth > 0:
                pass
            elif inside_leaf:
                comment = []


def main():
    readme = CHART / "README.md"
    head, rest = readme.read_text().split(BEGIN)
    tail = rest.split(END)[1]
    table = "| value | default | meaning |\n|---|---|---|\n" + "\n".join(rows()) + "\n"
    readme.write_text(head + BEGIN + table + END + tail)
    for copy in map(CHART.parents[1].joinpath, COPIES):
        if copy.exists():
            shutil.copy(copy, CHART / "files" / copy.name)


if __name__ == "__main__":
    main()
