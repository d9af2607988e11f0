"""Turns gpu_suite.json into lines `FIGURE name = value unit` and the table of what was asked for, as tools/run_proofs.py reads them."""

import json
import pathlib
import sys

import lines


def figure_lines(document):
    for part in document["parts"]:
        for figure in part["figures"]:
            value = figure["value"]
            bound = "" if figure["bound"] is None else f" (bound {figure['bound']}: {'met' if figure['met'] else 'NOT met'})"
            yield f"FIGURE {part['name']}: {figure['name'].replace('=', 'is')} = {value:.4g} {figure['unit']}{bound}".rstrip()


def main():
    document = json.loads(pathlib.Path(sys.argv[1]).read_text())
    print("\n".join(figure_lines(document)))
    print("\n".join(line for line in lines.markdown(document["lines"]) if line.startswith("|")))


if __name__ == "__main__":
    main()
