"""Make README.md and the pages under docs/, with their pictures, from their notebooks."""
import contextlib
import html
import os
import re
import tempfile
from pathlib import Path

import nbformat
from execnb.shell import CaptureShell
from fastcore.script import call_parse
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
NBS, DOCS = ROOT/"nbs", ROOT/"docs"
PAGES = {NBS/"index.ipynb": ROOT/"README.md", NBS/"benchmarks.ipynb": DOCS/"benchmarks.md"}
PAGES |= {notebook: DOCS/"results"/f"{notebook.stem}.md" for notebook in sorted((NBS/"results").glob("*.ipynb"))}
OPTIONS = {"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"hidden"}}, "MarkdownExporter": {"exclude_raw": True}}


def executed(notebook):
    "A notebook executed now, in this process, without what it printed. An error in it is raised again."
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(notebook.parent):
        CaptureShell(mpl_format="png").execute(notebook, Path(folder)/notebook.name, exc_stop=True)
        done = nbformat.read(Path(folder)/notebook.name, as_version=4)
    done.metadata["language_info"] = {"name": "python"}
    for cell in done.cells:
        if cell.cell_type == "code": cell.outputs = [output for output in cell.outputs if output.output_type != "stream"]
    return done


def markdown_cell(cell):
    "The HTML of a table's cell as Markdown."
    cell = re.sub(r"<br><small>(.*?)</small>", r". *\1.*", cell)
    cell = re.sub(r"<b(?: [^>]*)?>(.*?)</b>", r"**\1**", cell)
    return html.unescape(cell).replace("|", "\\|")


def markdown_table(table):
    "An HTML table of the report as a Markdown one."
    lines = [re.findall(r'<t[hd] style="text-align:(\w+)">(.*?)</t[hd]>', line) for line in re.findall("<tr>(.*?)</tr>", table)]
    rows = [[markdown_cell(cell) for _, cell in line] for line in lines]
    rows.insert(1, ["--:" if side == "right" else ":--" for side, _ in lines[0]])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def build(notebook, page):
    "(Markdown, {picture: bytes}) of a notebook. A code cell is shown when it begins with `import torch`."
    done = executed(notebook)
    for cell in done.cells:
        if cell.cell_type == "code" and not cell.source.startswith("import torch"): cell.metadata["tags"] = ["hidden"]
    files = {"output_files_dir": "docs/pictures", "unique_key": notebook.stem}
    text, resources = MarkdownExporter(config=OPTIONS).from_notebook_node(done, files)
    to_root = os.path.relpath(ROOT, page.parent)
    text = re.sub(r"!\[png\]\((.*?)\)", lambda m: f"![picture]({os.path.normpath(f'{to_root}/{m[1]}')})", text)
    text = re.sub(r'<div class="wide"><table>.*?</table></div>', lambda m: markdown_table(m[0]), text, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*\n\s*\n", "\n\n", text).strip() + "\n", resources["outputs"]


def compare(notebook, page, text, pictures):
    "Stop unless the committed page, and the names of its pictures, are what the notebook makes."
    if not page.exists() or text != page.read_text():
        raise SystemExit(f"{page.relative_to(ROOT)} is not what {notebook.relative_to(ROOT)} makes: run make readme")
    there = {str(p.relative_to(ROOT)) for p in pictures_of(notebook)}
    if there != set(pictures): raise SystemExit(f"{min(there ^ set(pictures))} is missing, or no page shows it: run make readme")


def write(notebook, page, text, pictures):
    "Write a page and its pictures, and remove those that it no longer has."
    for old in pictures_of(notebook): old.unlink()
    for path, content in ({page: text.encode()} | {ROOT/p: c for p, c in pictures.items()}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def pictures_of(notebook): return [p for p in (DOCS/"pictures").glob("*.png") if re.fullmatch(rf"{notebook.stem}_\d+_\d+", p.stem)]


@call_parse
def main(check: bool = False,  # Only compare the texts, and the pictures' names, with the committed pages, and fail if they differ
         only: str = None):    # The name of one notebook, as index or market1501-cpu
    "Write README.md and the pages under docs/ from their notebooks."
    for notebook, page in PAGES.items():
        if only in (None, notebook.stem): (compare if check else write)(notebook, page, *build(notebook, page))
