"""Build the site: the book and an API reference, with search, from the notebooks as they are stored; nothing is executed.

    make site        # writes _site/; needs npm, for KaTeX, which is copied into the site so that mathematics need no network

Pages keep their places in the repository: nbs/41_losses.triplet.ipynb becomes nbs/41_losses.triplet/. A link to a file that is no page
leads to the repository. mkdocs refuses links that lead nowhere. For Colab, each chapter is written to colab/ too, without outputs and
with a cell that installs the library; GitHub Pages publishes them from the branch gh-pages.
"""
import configparser
import logging
import posixpath
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from urllib.parse import unquote

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
KATEX = "katex@0.16.47"
SECTIONS = {"0": "Foundations", "1": "Data", "2": "Networks", "3": "Representation losses", "4": "Metric losses", "5": "Training",
            "6": "Evaluation", "7": "The study", "8": "The report", "9": "Inference and extending"}
RESULTS = "docs/results/README.md"
LIBRARY = ("docs/library.md", "docs/market1501.md", "docs/walks.md", "docs/chapters.md")      # other pages of docs come last
settings = configparser.ConfigParser(delimiters=["="])
settings.read(ROOT/"settings.ini", encoding="utf-8")
SETTINGS = settings["DEFAULT"]
EXTRAS = [name.removesuffix("_requirements") for name in SETTINGS
          if name.endswith("_requirements") and not name.startswith(("dev", "site", "cluster"))]


def chapters():
    "The notebooks of the book, in order."
    return [path for path in sorted((ROOT/"nbs").glob("*.ipynb")) if path.name[0].isdigit()]


def pages():
    "Path in the repository -> path among the sources of the site, of everything that is a page."
    texts = [ROOT/"CHANGELOG.md", ROOT/"CONTRIBUTING.md", *sorted((ROOT/"docs").rglob("*.md"))]
    there = {str(path.relative_to(ROOT)): str(path.relative_to(ROOT)) for path in texts}
    there |= {str(path.relative_to(ROOT)): str(path.relative_to(ROOT).with_suffix(".md")) for path in chapters()}
    return there | {"README.md": "index.md", "nbs/index.ipynb": "index.md"}


def linked(target, page, there):
    "The address for a link on a page, both as in the repository; one that leads nowhere is left as it is, and mkdocs names it."
    if re.match(r"[a-z]+:|/", target): return target
    if target.startswith("#"): return target.lower()
    address, mark, anchor = target.partition("#")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(address)))
    anchor = anchor.lower()      # as mkdocs names headings
    if place in there: return posixpath.relpath(there[place], posixpath.dirname(there[page]) or ".") + mark + anchor
    if place.startswith("docs/pictures/"): return posixpath.relpath(place, posixpath.dirname(there[page]) or ".")
    if not (ROOT/place).exists(): return target
    return f"{SETTINGS['git_url']}/{'tree' if (ROOT/place).is_dir() else 'blob'}/{SETTINGS['branch']}/{place}"


FENCE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.M | re.S)

def with_links(text, page, there):
    "Markdown with each link led to its page; code is left alone."
    def lead(match): return f"{match[1]}({linked(match[2], page, there)})"
    parts = FENCE.split(text)
    return "".join(part if i % 2 else re.sub(r"(\]|\]\s?)\(([^()\s]+)\)", lead, part) for i, part in enumerate(parts))


def spaced(text):
    "Markdown with an empty line before each list and table, which Python-Markdown needs and notebooks do not."
    parts = FENCE.split(text)
    start = r"(?m)^(?!\s*(?:[-*+]|\d+\.)\s|\s*\||\s*$)(.+)\n(?=(?:[-*+]|\d+\.)\s|\|)"
    return "".join(part if i % 2 else re.sub(start, r"\1\n\n", part) for i, part in enumerate(parts))


def badges(path):
    "What stands below the title of a chapter: where it can be run, and where it comes from."
    place, git = path.relative_to(ROOT), SETTINGS["git_url"]
    colab = f"https://colab.research.google.com/github/{SETTINGS['user']}/{SETTINGS['repo']}/blob/gh-pages/colab/{path.name}"
    module = re.search(r'"#\|\s*(?:default_exp|export)[ \t]+([\w.]+)', path.read_text(encoding="utf-8"))
    links = [f"[Open in Colab]({colab}){{ .badge }}", f"[Notebook]({git}/blob/{SETTINGS['branch']}/{place}){{ .badge }}"]
    if module: links.append(f"[Reference](../reference/{module[1]}.md){{ .badge }}")
    return " ".join(links)


def notebook(path):
    "A chapter, without nbdev's directives, and without the cells that hold nothing else."
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code": cell.source = re.sub(r"(?m)^#\|.*\n?", "", cell.source).strip()
    book.cells = [cell for cell in book.cells if cell.source or cell.get("outputs")]
    return book


def chapter(path, there):
    "(Markdown, {file: bytes}) of a chapter."
    page, book = str(path.relative_to(ROOT)), notebook(path)
    for cell in book.cells:
        if cell.cell_type == "markdown": cell.source = spaced(with_links(cell.source, page, there))
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html")
            if html:        # an empty line would end a block of HTML
                one = re.sub("\n\\s*\n", "\n", html)
                output["data"]["text/html"] = f'<div class="output">{one}</div>'
    book.metadata["language_info"] = {"name": "python"}
    text, resources = MarkdownExporter().from_notebook_node(book, {"output_files_dir": "pictures", "unique_key": path.stem})
    title, mark, rest = text.lstrip().partition("\n")
    text = f"{title}\n\n{badges(path)}\n{rest}".replace("![png](", "![picture](").replace("![svg](", "![picture](")
    return text, resources["outputs"]


def colab(path):
    "A chapter for Colab: its code, and before it a cell that installs the library."
    book = nbformat.read(path, as_version=4)
    install = f'%pip install -q "{SETTINGS["lib_name"]}[{",".join(EXTRAS)}] @ git+{SETTINGS["git_url"]}@{SETTINGS["branch"]}"'
    for cell in book.cells:
        if cell.cell_type == "code": cell.outputs, cell.execution_count = [], None
    book.cells.insert(1, nbformat.v4.new_code_cell(install, id="install"))
    return nbformat.writes(book)


def reference():
    "{path: Markdown} of the API reference, a page a module; mkdocstrings reads the modules without importing them."
    package, found = SETTINGS["lib_name"], {}
    for module in sorted((ROOT/package).rglob("*.py")):
        name = ".".join(module.relative_to(ROOT).with_suffix("").parts)
        if module.name.startswith("_"): continue
        short = name.removeprefix(f"{package}.")
        sources = sorted({*re.findall(r"\.\./nbs/(\S+?)\.ipynb #", module.read_text(encoding="utf-8"))})
        links = " ".join(f"[Chapter {source.split('_')[0]}](../nbs/{source}.md){{ .badge }}" for source in sources)
        found[f"reference/{short}.md"] = f"# {short}\n\n{links}\n\n::: {name}\n"
    return found


def copy_package(folder):
    "The package, to be read for the reference: links from docstrings to chapters lead from where the reference is."
    for module in (ROOT/SETTINGS["lib_name"]).rglob("*.py"):
        text = re.sub(r"\]\((\w[\w.]*)\.ipynb\)", r"](../nbs/\1.md)", module.read_text(encoding="utf-8"))
        write(folder/module.relative_to(ROOT), text.encode())


def title(text): return re.search(r"(?m)^# (.+)", text)[1].replace("`", "")


def write_sources(folder):
    "Write the sources of the site; returns its navigation."
    there, texts = pages(), reference()
    reference_nav = [{path.split("/")[1].removesuffix(".md"): path} for path in texts]
    for page, place in there.items():
        if page.endswith(".md"): texts[place] = spaced(with_links((ROOT/page).read_text(encoding="utf-8"), page, there))
    book = {name: [] for name in SECTIONS.values()}
    for path in chapters():
        place = there[str(path.relative_to(ROOT))]
        texts[place], files = chapter(path, there)
        for name, content in files.items(): write(folder/"nbs"/name, content)
        book[SECTIONS[path.name[0]]].append({f"{path.name.split('_')[0]} · {title(texts[place])}": place})
        write(folder/"colab"/path.name, colab(path).encode())
    texts["index.md"] = "---\nhide: [navigation]\n---\n\n" + texts["index.md"]
    for place, text in texts.items(): write(folder/place, text.encode())
    shutil.copytree(ROOT/"docs"/"pictures", folder/"docs"/"pictures", dirs_exist_ok=True)
    results = [{"Overview": RESULTS}, *({title(texts[p]): p} for p in sorted(texts) if p.startswith("docs/results/") and p != RESULTS)]
    docs = [p for p in sorted(texts) if re.fullmatch(r"docs/[^/]+\.md", p) and p not in LIBRARY]
    library, more = ([{title(texts[p]): p} for p in places] for places in (LIBRARY, [*docs, "CONTRIBUTING.md", "CHANGELOG.md"]))
    return [{"Home": "index.md"}, {"Library": library}, {"Book": [{name: part} for name, part in book.items()]}, {"Results": results},
            {"Reference": reference_nav}, {"More": more}]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def copy_katex(folder):
    "KaTeX from its npm package: script, style and fonts."
    if not shutil.which("npm"): raise SystemExit("make site takes KaTeX from an npm package; install Node.js with npm first")
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["npm", "pack", "--silent", KATEX], cwd=place, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(place).glob("*.tgz"))) as package: package.extractall(place, filter="data")
        there = Path(place)/"package"/"dist"
        for name in ("katex.min.js", "katex.min.css", *(f"fonts/{font.name}" for font in (there/"fonts").glob("*.woff2"))):
            write(folder/"katex"/name, (there/name).read_bytes())


def main():
    "Build _site/."
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    with tempfile.TemporaryDirectory() as place:
        nav = write_sources(Path(place)/"docs")
        copy_package(Path(place))
        copy_katex(Path(place)/"docs")
        for name in ("site.css", "site.js"): shutil.copy(ROOT/"tools"/name, Path(place)/"docs"/name)
        config = load_config(str(ROOT/"tools"/"site.yml"), docs_dir=f"{place}/docs", site_dir=str(ROOT/"_site"), nav=nav, strict=True,
                             site_name=SETTINGS["lib_name"], site_description=SETTINGS["description"],
                             extra={"social": [{"icon": "fontawesome/brands/github", "link": SETTINGS["git_url"]}], "generator": False},
                             site_url=f"{SETTINGS['doc_host']}{SETTINGS['doc_baseurl']}/")
        config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [place]
        build(config)
    print("open _site/index.html, or: python -m http.server -d _site")


if __name__ == "__main__": main()
