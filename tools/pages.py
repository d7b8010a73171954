"""Make README.md and the pages under docs/, with their pictures, from their notebooks."""
import os
import re
from pathlib import Path

import nbformat
from fastcore.script import call_parse
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"index": ROOT/"README.md", "results": ROOT/"docs"/"results.md", "benchmarks": ROOT/"docs"/"benchmarks.md"}


def build(name):
    "(Markdown, {picture: bytes}) of a notebook, executed now. A code cell is shown when it begins with `import torch`."
    notebook = nbformat.read(ROOT/"nbs"/f"{name}.ipynb", as_version=4)
    ExecutePreprocessor(timeout=300, kernel_name="python3").preprocess(notebook, {"metadata": {"path": ROOT/"nbs"}})
    for cell in notebook.cells:
        if cell.cell_type == "code" and not cell.source.startswith("import torch"): cell.metadata["tags"] = ["hidden"]
    exporter = MarkdownExporter(config={"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"hidden"}}})
    text, resources = exporter.from_notebook_node(notebook, {"output_files_dir": "docs/pictures", "unique_key": name})
    to_page = os.path.relpath(ROOT, PAGES[name].parent)
    text = re.sub(r"!\[png\]\((.*?)\)", lambda m: f"![picture]({m[1]})" if to_page == "." else f"![picture]({to_page}/{m[1]})", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", resources["outputs"]


@call_parse
def main(check: bool = False):  # Only compare the texts, and the pictures' names, with the committed pages, and fail if they differ
    "Write README.md and the pages under docs/ from their notebooks."
    for name, page in PAGES.items():
        text, pictures = build(name)
        if check:
            if not page.exists() or text != page.read_text():
                raise SystemExit(f"{page.relative_to(ROOT)} is not what nbs/{name}.ipynb makes: run make readme")
            there = {str(p.relative_to(ROOT)) for p in (ROOT/"docs"/"pictures").glob(f"{name}_*.png")}
            if there != set(pictures): raise SystemExit(f"{min(there ^ set(pictures))} is missing or too much: run make readme")
            continue
        for old in (ROOT/"docs"/"pictures").glob(f"{name}_*.png"):
            if str(old.relative_to(ROOT)) not in pictures: old.unlink()
        for path, content in ({page: text.encode()} | {ROOT/p: c for p, c in pictures.items()}).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
