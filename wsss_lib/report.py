"""The HTML report of a run: one results page with table and figures, and every executed notebook.

`python -m wsss_lib.report runs/toy` writes `runs/toy/report/index.html`.
"""

import base64
import html
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import bleach
import nbformat
from nbconvert import HTMLExporter

from wsss_lib.core.files import sha256, write_atomically
from wsss_lib.core.parallel import few_workers, map_in_processes
from wsss_lib.core.progress import progress
from wsss_lib.results import collect, summarize, table

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font-family:sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;line-height:1.5}}
pre{{overflow-x:auto;background:#f5f5f5;padding:1rem}} img{{max-width:100%}} figcaption{{font-style:italic}}</style></head>
<body><h1>{title}</h1>{opening}<p>{order}</p><pre>{table}</pre><h2>Pictures</h2>{figures}
<h2>Executed notebooks</h2><ul>{links}</ul></body></html>
"""

OPENING = "report"  # tag of the cells of notebook 00 whose figures come first
# Best first: DeepLab-v2 + CRF of the full smoke run, the mean of three seeds.
SMOKE_ORDER = ("drs", "vwe", "amn", "rib", "cam", "sccam")
# What a notebook's Markdown may bring into a page: text, tables and pictures, nothing that runs.
TAGS = {
    *bleach.ALLOWED_TAGS,
    *("h1", "h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "div", "span", "pre", "del", "img", "sub", "sup"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


def _is_allowed(tag: str, name: str, value: str) -> bool:
    """Return whether an attribute may stay; bleach has checked the protocol of addresses."""
    if name in ("href", "src") and value.lstrip().lower().startswith("data:"):
        return tag == "img" and value.startswith("data:image/") and not value.startswith("data:image/svg")
    allowed = {"a": ("href", "title"), "img": ("src", "alt", "title")}
    return name in ("class", "id", *allowed.get(tag, ()))


def clean(page: str) -> str:
    """Return HTML without anything that could run; other tags are shown as text."""
    return bleach.clean(page, tags=TAGS, attributes=_is_allowed, protocols={*bleach.ALLOWED_PROTOCOLS, "data"})


def write_report(run_folder: Path) -> Path:
    """Write the report of all finished stages of a run.

    Returns:
        the path of `report/index.html`.

    Raises:
        ValueError: no stage has finished yet.
        OSError: a page cannot be written.
    """
    rows = collect(run_folder)
    if not rows:
        raise ValueError(f"{run_folder}: no finished stage with scores; run the pipeline first")
    report = run_folder / "report"
    links, opening, figures = [], [], []
    executed = _executed_notebooks(run_folder)
    pages = [report / ("-".join(path.parent.parts[-3:]) + ".html") for path in executed]
    written = map_in_processes(_write_page, list(zip(executed, pages, strict=True)), few_workers(), 1, "report")
    list(progress(written, "report", total=len(pages)))
    for path, page in zip(executed, pages, strict=True):
        links.append(f'<li><a href="{quote(page.name)}">{html.escape(page.stem)}</a></li>')
        if path.parent.parent.parent.name == "report":
            cells = nbformat.read(path, as_version=4).cells
            opening += _figures(cell for cell in cells if OPENING in cell.metadata.get("tags", []))
            figures += _figures(cell for cell in cells if OPENING not in cell.metadata.get("tags", []))
    summary = summarize(rows)
    index = PAGE.format(
        title=f"Results: {html.escape(run_folder.name)}",
        opening="".join(opening),
        order=html.escape(order_of_methods(summary)) if run_folder.name == "toy" else "",
        table=html.escape(table(summary, compare=run_folder.name == "voc12")),
        figures="".join(figures),
        links="".join(links),
    )
    write_atomically(report / "index.html", lambda temporary: temporary.write_text(index, encoding="utf-8"))
    return report / "index.html"


def _executed_notebooks(run_folder: Path) -> list[Path]:
    """Return one copy of each executed notebook: a notebook that makes two stages lies in the folders of both."""
    copies: dict[str, Path] = {}
    for path in sorted(run_folder.glob("*/seed*/*/notebook.ipynb")):
        if "." not in path.parent.name:  # with one: a result that is kept until its parameters come back
            copies.setdefault(sha256([path], path.parent), path)
    return list(copies.values())


def _write_page(paths: tuple[Path, Path]) -> None:
    executed, page = paths
    # nbconvert's own `clean_html` does not know headings and shows them as text.
    exporter = HTMLExporter(template_name="lab", embed_images=True, sanitize_html=True, filters={"clean_html": clean})
    text, _ = exporter.from_notebook_node(nbformat.read(executed, as_version=4))
    write_atomically(page, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def order_of_methods(summary: Sequence[dict]) -> str:
    """Say in one sentence whether the methods rank as in the full smoke run; empty with fewer than two methods."""
    reached = {row["method"]: row["miou"] for row in summary if row["what"] == "DeepLab-v2 + CRF" and row["miou"] is not None}
    usual = [method for method in SMOKE_ORDER if method in reached]
    if len(usual) < 2:
        return ""
    here = sorted(usual, key=lambda method: -reached[method])
    return (
        f"By the mIoU of DeepLab-v2 + CRF the methods stand here in the order {', '.join(here)}; "
        + ("that is" if here == usual else f"that is not, with {', '.join(usual)},")
        + " the order of the full smoke run (notebook 95, docs/results.md)."
    )


def _figures(cells: Iterable):
    """Yield the figures of cells of an executed notebook as HTML, with their text alternative as caption."""
    for cell in cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture:
                text = html.escape(output.metadata.get("image/png", {}).get("alt", ""))
                picture = "".join(picture.split())
                base64.b64decode(picture, validate=True)  # refuse anything that is not base64 before it goes into a page
                image = f'<img alt="{text}" src="data:image/png;base64,{picture}">'
                yield f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def main(arguments: list[str]) -> None:
    """Write the report of a run folder; ends the program with a sentence when that cannot be done."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        sys.exit("usage: python -m wsss_lib.report runs/<dataset>")
    try:
        print(write_report(Path(arguments[0])))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
