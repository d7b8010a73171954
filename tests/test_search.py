"The search page in a browser, where Chromium is installed: what it shows, clicks, keys, the filter, and file names that look like HTML."
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from chromium import CHROMIUM, FLAGS, needs_chromium

from reid_study.inference.folders import embed_folder
from reid_study.inference.search import search_page

DUMP = "--headless --virtual-time-budget=20000 --window-size=1200,900 --dump-dom".split()
NAME = """<b>&"'.jpg"""

HELPERS = """
const $ = s => document.querySelector(s), $$ = s => [...document.querySelectorAll(s)];
const wait = () => new Promise(done => setTimeout(done, 50));
const press = (key, on = document.activeElement) => on.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const type = text => { $("#filter").value = text; $("#filter").dispatchEvent(new Event("input")) };
const rank = b => [b.querySelector("b").textContent, b.querySelector("[title=distance]").textContent, b.lastChild.textContent,
  b.className.trim(), b.querySelector("img").alt, b.querySelector(".verdict").textContent];
const see = () => ({
  address: location.hash, name: $("#name").textContent, who: $("#who").textContent, summary: $("#summary").textContent,
  back: !$("#back").disabled, ranks: $$("#ranks button").map(rank), count: $("#count").textContent,
  marked: $$("#queries button").findIndex(b => b.hasAttribute("aria-current")),
  visible: $$("#queries button").filter(b => !b.hidden).map(b => b.title),
  focus: document.activeElement.id || document.activeElement.closest("li, #queries")?.tagName,
  loaded: $$("img").every(i => i.naturalWidth > 0)});
"""


def drive(page, fragment="", script="return see()"):
    "The JSON value that a script returns in the opened page."
    log = "v => { $('#log').textContent = JSON.stringify(v) }, e => { $('#log').textContent = JSON.stringify(String(e)) }"
    driver = f"<pre id='log' hidden></pre><script>{HELPERS} (async () => {{ await wait(); {script} }})().then({log})</script></body>"
    driven = page.with_name("driven.html")
    driven.write_text(page.read_text().replace("</body>", driver))
    command = [CHROMIUM, *FLAGS, *DUMP, f"--user-data-dir={page.parent/'browser'}", driven.as_uri() + fragment]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=120).stdout
    found = re.search(r'<pre id="log"[^>]*>(.*?)</pre>', out, re.S)
    assert found, out[-500:]
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def place(embedder, tmp_path_factory):
    "A page of a few drawn people, by a network that trained for a moment, and what the page was made of."
    tmp, (root, network) = tmp_path_factory.mktemp("search"), embedder
    queries, gallery = (embed_folder(network, root/"data"/"people"/part) for part in ("query", "bounding_box_test"))
    return tmp, network, queries, gallery, search_page(queries, gallery, tmp/"page.html", network, top=12)


def ranked(place, x, without=None):
    "Names and distances of the gallery in the order of one embedding."
    _, embedder, _, (table, gallery), _ = place
    d = embedder.distance(torch.tensor(x)[None], torch.tensor(gallery))[0].numpy()
    order = [i for i in d.argsort(kind="stable") if i != without]
    return [table.path[i] for i in order], d[order]


def pid(name): return int(name.split("_")[0])


@needs_chromium
def test_the_page_shows_the_query_of_its_address(place):
    _, _, (table, x), (gallery, _), page = place
    seen = drive(page, "#q=3")
    names, d = ranked(place, x[3])
    assert seen["name"] == table.path[3] and seen["marked"] == 3 and seen["visible"] == table.path.tolist() and seen["loaded"]
    assert [r[0] for r in seen["ranks"]] == [str(i) for i in range(1, 13)] and [r[2] for r in seen["ranks"]] == names[:12]
    assert np.allclose([float(r[1]) for r in seen["ranks"]], d[:12], atol=6e-4)
    kinds = {name: kind for _, _, name, kind, _, _ in seen["ranks"]}
    for name, kind in kinds.items():
        camera = re.search("_c.", name)[0] == re.search("_c.", table.path[3])[0]
        right = "card same camera" if camera else "card same"
        assert kind == ("card" if pid(name) == -1 else "card other" if pid(name) != pid(table.path[3]) else right), name
    assert {k.split()[1] for k in kinds.values() if " " in k} == {"same", "other"}
    assert all(name in alt and verdict for _, _, name, _, alt, verdict in seen["ranks"]), "every picture has words"
    everybody, found = (sum(pid(name) == pid(table.path[3]) for name in them) for them in (gallery.path, names[:12]))
    assert str(everybody) in seen["summary"] and str(found) in seen["summary"]


@needs_chromium
@pytest.mark.parametrize("fragment", ["", "#q=99999", "#g=-1", "#q=1e1", "#<b>"])
def test_an_address_that_means_nothing_shows_the_first_query(place, fragment):
    assert drive(place[-1], fragment)["name"] == place[2][0].path[0]


@needs_chromium
def test_a_click_on_an_answer_asks_for_it_and_back_returns(place):
    _, _, (table, x), (gallery, g), page = place
    first, second, third, back, start = drive(page, "#q=2", """
        const seen = [see()];
        const click = i => $$("#ranks button")[i].click();
        for (const step of [() => click(1), () => click(0), () => $("#back").click(), () => press("Escape")]) {
            step(); await wait(); seen.push(see()) }
        return seen""")
    chosen = ranked(place, x[2])[0][1]
    at = gallery.path.tolist().index(chosen)
    assert second["name"] == chosen and second["address"] == f"#g={at}" and second["marked"] == -1 and second["back"] and not first["back"]
    assert [r[2] for r in second["ranks"]] == ranked(place, g[at], without=at)[0][:12] and chosen not in [r[2] for r in second["ranks"]]
    assert third["name"] == second["ranks"][0][2] and back["ranks"] == second["ranks"]
    assert start["ranks"] == first["ranks"] and not start["back"]
    assert second["focus"] == "name", "the keyboard's focus moves to the new image"


@needs_chromium
def test_keys(place):
    names = place[2][0].path.tolist()
    seen = drive(place[-1], "#q=0", """
        const seen = [];
        const steps = [
            ...["ArrowRight", "ArrowRight", "ArrowLeft"].map(key => () => press(key, document.body)), () => $$("#ranks button")[0].focus(),
            () => press("ArrowRight"), () => press("ArrowDown"), () => press("ArrowUp"), () => document.activeElement.click(),
            () => press("ArrowDown"), () => $$("#queries button")[0].focus(), () => press("ArrowDown"), () => press("/"),
            () => press("ArrowRight")];
        for (const step of steps) {
            step(); await wait();
            const active = document.activeElement, places = ["#ranks button", "#queries button"].map(s => $$(s).indexOf(active));
            seen.push([location.hash, active.id, ...places]) }
        return seen""")
    assert [s[0] for s in seen[:3]] == ["#q=1", "#q=2", "#q=1"]
    assert seen[3][2] == 0 and seen[4][2] == 1 and seen[5][2] > 2 and seen[6][2] == 1
    assert seen[7][0].startswith("#g=") and seen[7][1] == "name" and seen[8][2] == 0
    assert seen[10][0] == "#q=3" and seen[10][3] == 3, "three queries a row; moving among them shows them"
    assert seen[11][1] == "filter" and seen[12][0] == "#q=3" and len(names) > 3, "keys belong to the field while one types"


@needs_chromium
def test_the_filter(place):
    _, _, (table, x), _, page = place
    one, person, both, none, wrong, everything = drive(page, "", """
        const seen = [];
        for (const text of ["NAME", "person PID", "PID camera 1", "nobody"]) { type(text); seen.push(see()) }
        type(""); $("#only").value = "wrong"; $("#only").dispatchEvent(new Event("change")); seen.push(see());
        $("#only").value = "all"; $("#only").dispatchEvent(new Event("change")); seen.push(see());
        return seen""".replace("NAME", table.path[4].upper()).replace("PID", str(pid(table.path[4]))))
    assert one["visible"] == [table.path[4]] and one["count"] == f"1 of {len(table)} queries" and none["visible"] == []
    assert set(person["visible"]) >= {n for n in table.path if pid(n) == pid(table.path[4])}
    assert set(both["visible"]) <= set(person["visible"])
    camera = lambda name: re.search(r"_c(\d)", name)[1]
    judged = lambda n, name: pid(n) != -1 and (pid(n), camera(n)) != (pid(name), camera(name))
    first = [next(n for n in ranked(place, x[i])[0] if judged(n, name)) for i, name in enumerate(table.path)]
    assert wrong["visible"] == [n for n, f in zip(table.path, first) if pid(n) != pid(f)] and everything["visible"] == table.path.tolist()


@pytest.fixture
def odd(place):
    "A page whose files have names that look like HTML, and a title that does."
    tmp, embedder, (table, _), *_ = place
    folder = tmp/"odd"
    if not folder.exists():
        folder.mkdir()
        for i, name in enumerate((NAME, "<!--<script>.png", "größe.jpg")):
            shutil.copy(f"{table.attrs['folder']}/{table.path[i]}", folder/name)
    both = embed_folder(embedder, folder)
    return search_page(both, both, tmp/"odd.html", embedder, title="</title><i>&")


def test_names_cannot_end_what_holds_them(odd):
    text = odd.read_text()
    assert text.count("<script") == text.count("</script>") == 2 and not any(tag in text for tag in ("<b>", "<i>", "<!--"))
    assert "\\u003cb\\u003e\\u0026" in text
    assert "default-src 'none'" in text and not re.search(r"https?:|(src|href)=", text)


@needs_chromium
def test_names_are_text(odd):
    seen = drive(odd, "#q=1", "return [document.title, see(), $$('#ranks i, #queries b, h2 *, i').length, $('h1').textContent]")
    title, page, elements, heading = seen
    names = sorted(("<!--<script>.png", NAME, "größe.jpg"))
    assert title == heading == "</title><i>&" and elements == 0 and page["visible"] == names and page["name"] == names[1] == NAME
    assert sorted(r[2] for r in page["ranks"]) == [names[0], names[2]] and all(r[3] == "card" for r in page["ranks"]) and page["loaded"]
