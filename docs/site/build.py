"""Build the static site: README, documents and notebooks with their stored outputs; no network is needed, then or to read it.

python docs/site/build.py build/site              # all notebooks; `make site` runs this
python docs/site/build.py build/site 00_start_here 10_cam
"""

import re
import shutil
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from PIL import Image
from sphinx.cmd.build import main as sphinx

sys.path.insert(0, str(Path(__file__).parent))
from sliders import add_strips  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
READING_PATH = {  # as in the README
    "The chain": ("00", "02", "10", "70", "80", "90"),
    "The methods": ("20", "01", "30", "40", "50", "60", "75"),
    "Comparison": ("95", "96"),
    "Your own photographs": ("99",),
}
MARKER = ".made-by-docs-site-build"  # in every folder that this program may empty


def check_ours(folder: Path) -> None:
    """Refuse a folder that this program has not made, that contains the project, or that lies in its .git."""
    if folder.exists() and any(folder.samefile(parent) for parent in (ROOT, *ROOT.parents)):
        sys.exit(f"{folder}: contains the project, and a site's folder is emptied; give another folder, e.g. build/site")
    if ROOT / ".git" in folder.resolve().parents:
        sys.exit(f"{folder}: lies inside the project's .git; give another folder, e.g. build/site")
    if folder.exists() and not folder.is_dir() or folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        sys.exit(f"{folder}: was not made by this program, which would empty it; give a new folder, or remove it yourself")


def empty(folder: Path) -> None:
    """Make a folder, or empty one that `check_ours` has accepted, and mark it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


def fold_answers(path: Path) -> None:
    """Hide the answers of a notebook of solutions, words and code, behind buttons."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and "widgets.check(" in cell.source:
            cell.metadata["tags"] = ["hide-input"]
        question, mark, answer = cell.source.partition("**Answer.** ")
        if cell.cell_type == "markdown" and mark:
            cell.source = f"{question}```{{admonition}} Answer\n:class: dropdown\n{answer}\n```"
    nbformat.write(notebook, path)


def gather(source: Path, names: list[str]) -> None:
    """Copy what the site shows to an empty folder: the README as its first page, documents, notebooks (all or those named)."""
    shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("site"))
    (source / "notebooks/solutions").mkdir(parents=True)
    for notebook in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        if (not names or notebook.stem in names) and ".ipynb_checkpoints" not in notebook.parts:
            shutil.copy(notebook, copy := source / notebook.relative_to(ROOT))
            add_strips(copy)
    shown = {path.stem[:2]: f"notebooks/{path.stem}" for path in (source / "notebooks").glob("*.ipynb")}
    parts = {caption: [shown[number] for number in numbers if number in shown] for caption, numbers in READING_PATH.items()}
    parts |= {"Solutions of the exercises": ["notebooks/solutions/*"], "Documents": ["docs/*"]}
    contents = "".join(
        f"\n```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n:glob:\n:hidden:\n\n{chr(10).join(pages)}\n```\n"
        for caption, pages in parts.items()
        if pages
    )
    for solution in (source / "notebooks/solutions").glob("*.ipynb"):
        fold_answers(solution)
    (source / "index.md").write_text((ROOT / "README.md").read_text(encoding="utf-8") + contents, encoding="utf-8")
    shutil.copy(ROOT / "CONTRIBUTING.md", source)


# Headings without a level, header cells without text; and blocks that scroll must be reachable by keyboard.
REPAIRS = (
    ('<p class="caption" role="heading">', '<p class="caption" role="heading" aria-level="2">'),
    ('<th class="head"><p></p></th>', "<td></td>"),
    ("<pre>", '<pre tabindex="0">'),
    ('<table class="', '<table tabindex="0" class="'),
    ('<summary aria-label="Toggle hidden content">', "<summary>"),
)


def mend(page: Path) -> None:
    """Give every picture of a page the text that its notebook has stored in it, and repair what keeps readers out."""

    def described(match: re.Match) -> str:
        file = page.parent / unquote(match[2])
        text = Image.open(file, formats=("PNG",)).text.get("Description") if file.suffix == ".png" and file.is_file() else None
        return f'<img alt="{escape(text)}" src="{match[2]}"' if text else match[0]

    html = re.sub(r'<img alt="([^"]*)" src="([^"]+)"', described, page.read_text(encoding="utf-8"))
    for theirs, ours in REPAIRS:
        html = html.replace(theirs, ours)
    html = re.sub(r"<thead>\s*<tr[^>]*>(\s*<td></td>\s*)+</tr>\s*</thead>", "", html)  # a table without a head
    page.write_text(html, encoding="utf-8")


class Page(HTMLParser):
    """What a page links to and can be linked by."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.anchors, self.pictures = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Collect links, anchors and pictures' texts."""
        values = dict(attributes)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        self.links += [(tag, values[name]) for name in ("href", "src") if values.get(name)]
        if tag == "img":
            self.pictures.append(values.get("alt") or "")


def faults(site: Path) -> list[str]:
    """Say which links of a site lead nowhere, what is loaded from elsewhere, and which pictures have no text."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: a picture without a text" for text in page.pictures if len(text.split()) < 4]
        for tag, link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if tag in ("script", "img", "link") and parts.scheme != "data":
                    found.append(f"{name}: loads {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                found.append(f"{name}: {link} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name}: {link} has no such place")
    return found


def build(site: Path, names: list[str]) -> list[str]:
    """Build the site into a folder, beside one of its sources, and return its faults."""
    site = site.resolve()
    source = (site.parent / f"{site.name}-source").resolve()
    for folder in (site, source):
        check_ours(folder)
    for folder in (site, source):
        empty(folder)
    gather(source, names)
    if sphinx(["-q", "-c", str(ROOT / "docs/site"), "-d", str(source / ".doctrees"), str(source), str(site)]):
        sys.exit("sphinx-build failed")
    for template in (site / "_static").glob("*webpack-macros.html"):  # the theme's, which no page shows
        template.unlink()
    for page in site.rglob("*.html"):
        mend(page)
    return faults(site)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python docs/site/build.py FOLDER [NOTEBOOK ...]")
    problems = build(Path(sys.argv[1]), sys.argv[2:])
    print("\n".join(problems) or f"{sys.argv[1]}/index.html: all internal links lead somewhere, all pictures have a text")
    sys.exit(bool(problems))
