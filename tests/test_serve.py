"The page that takes a dropped picture, in a browser, where Chromium and Playwright are installed; and what it keeps."
import socket
import subprocess
import sys
import threading

import pytest
from chromium import CHROMIUM, FLAGS, needs_chromium

from reid_study.inference.folders import embed_folder
from reid_study.inference.serve import Gallery, listen, make_app

DROP = """async ([url, name]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([await (await fetch(url)).blob()], name));
    const over = new DragEvent("dragover", {dataTransfer: transfer, bubbles: true, cancelable: true});
    document.getElementById("drop").dispatchEvent(over);
    if (!over.defaultPrevented || !document.querySelector("#drop.over")) throw new Error("the page does not take what is dragged");
    document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def address(embedder):
    pytest.importorskip("starlette")
    root, network = embedder
    found, ready = [], threading.Event()
    app = make_app(network, Gallery(*embed_folder(network, root/"data"/"people"/"bounding_box_test")), top=8)
    threading.Thread(target=listen, args=(app, 0, lambda url: (found.append(url), ready.set())), daemon=True).start()
    assert ready.wait(30)
    return found[0]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@needs_chromium
@pytest.mark.parametrize("width", (1280, 390))
def test_a_picture_is_chosen_and_dropped(embedder, address, browser, tmp_path, width):
    page, wrong = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" and "400" not in message.text else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    query = sorted((embedder[0]/"data"/"people"/"query").iterdir())[0]
    page.set_input_files("#file", query)
    page.wait_for_selector("#answer li")
    assert page.locator("#answer li").count() == 8 and "Searched" in page.inner_text("#status")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("[...document.querySelectorAll('li img, #shown')].every(i => i.naturalWidth)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    (tmp_path/"page.jpg").write_text("<html>")
    page.set_input_files("#file", tmp_path/"page.jpg")
    page.wait_for_selector("#status.error")
    assert "no readable image" in page.inner_text("#status") and page.locator("#answer li").count() == 0

    page.evaluate(DROP, ["/image/5", "dropped.webp"])
    page.wait_for_selector("#answer li")
    assert page.locator("#status.error").count() == page.locator("#drop.over").count() == 0
    assert not wrong, wrong
    page.close()


@needs_chromium
def test_a_picture_that_is_too_large_is_not_sent(address, browser, tmp_path):
    page, sent = browser.new_page(), []
    page.on("request", lambda request: sent.append(request.url))
    page.goto(address)
    with open(tmp_path/"large.png", "wb") as file: file.truncate(20_000_001)
    page.set_input_files("#file", tmp_path/"large.png")
    page.wait_for_selector("#status.error")
    assert "too large" in page.inner_text("#status") and not any("match" in url for url in sent)
    page.close()


def test_the_command_listens_on_this_machine_alone_and_ends_when_it_is_told(embedder):
    pytest.importorskip("starlette")
    root, _ = embedder
    command = [sys.executable, "-m", "reid_study.cli", "serve", root/"embedder", root/"data"/"people"/"bounding_box_test"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--port", "0", "--device", "cpu"], cwd=root, **pipes) as process:
        line = process.stdout.readline()
        port = int(line.split("127.0.0.1:")[1].split()[0])
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
        for other in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}:
            if other.startswith("127."): continue
            with pytest.raises(OSError): socket.create_connection((other, port), timeout=10)
        process.terminate()
        assert process.wait(30) in (0, 130) and "Traceback" not in process.stderr.read()
