"""The page of app.py, in a real browser and from Python. Skipped where Gradio is missing."""

import base64
import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile

import pytest
from helpers import (
    BEST,
    OWN_MODEL,
    ROOT,
    open_browser,
    picture_width_height,
    script_command,
    write_model,
    write_pairs,
)

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None,
    reason="no gradio; pip install -r requirements-app.txt",
)
SECONDS = 120  # to start; importing Gradio and torch takes a while
HARMLESS = "Method not implemented."  # Gradio's page says that of itself
DROP = """([files, selector]) => {
  const transfer = new DataTransfer();
  for (const [name, text] of files) {
    transfer.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name));
  }
  const event = {dataTransfer: transfer, bubbles: true, cancelable: true};
  for (const type of ['dragenter', 'dragover', 'drop']) {
    document.querySelector(selector).dispatchEvent(new DragEvent(type, event));
  }
}"""
PREVIEWS = """[...document.querySelectorAll('[data-testid=imageslider-image]')]
  .map(image => [image.naturalWidth, image.naturalHeight])"""


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with photographs and a model, and the address of a page that runs there."""
    folder = tmp_path_factory.mktemp("site")
    write_pairs(folder / "photos", folder / "masks", cars=2, angles=1)
    for number, path in enumerate(sorted((folder / "photos").iterdir())):
        path.rename(folder / f"car{number}.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    write_model(folder / BEST)
    port = free_port()
    temporary = folder / "temporary"
    temporary.mkdir()
    command = ["env", f"TMPDIR={temporary}", *script_command("app.py", "--port", port, *OWN_MODEL)]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: f"now open {address}" in (folder / "log.txt").read_text(), server)
        yield folder, address
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, (folder / "log.txt").read_text()
        assert list(temporary.glob("carvana_page_*")) == []


def wait_for(condition, server=None):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        assert server is None or server.poll() is None
        time.sleep(0.1)


@pytest.fixture
def tab(site):
    """A tab with the page; what it complains about and asks elsewhere for fails the test."""
    complaints = []
    _, address = site
    with open_browser() as browser:
        tab = browser.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: complaints.append(request.url))
        tab.goto(address)
        tab.get_by_text("Drop File Here").first.wait_for()
        yield tab
        tab.close()
    own = (address, "data:", "blob:", HARMLESS)
    assert [complaint for complaint in complaints if not complaint.startswith(own)] == []


def drop(tab, *paths):
    """Drop files on the page as a mouse does."""
    files = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths]
    tab.evaluate(DROP, [files, "button:has(input[type=file])"])


def report(tab):
    """Return what the page says of each file."""
    return tab.get_by_label("What became of each").input_value().splitlines()


def wait_until(tab, condition):
    """Wait for something to be true of a tab, which goes on meanwhile."""
    for _ in range(SECONDS * 10):
        if condition():
            return
        tab.wait_for_timeout(100)
    raise AssertionError(report(tab))


@needs_gradio
def test_photographs_that_are_dropped_become_cutouts(site, tab, tmp_path):
    folder, _ = site
    drop(tab, folder / "car0.jpg", folder / "broken.jpg", folder / "car1.jpg")
    wait_until(tab, lambda: len(report(tab)) == 3)
    lines = report(tab)
    assert re.match("car0.jpg: car [0-9.]+ %", lines[0])
    assert re.match("car1.jpg: car [0-9.]+ %", lines[1])
    assert lines[2].startswith("broken.jpg: cannot be read (")
    button = tab.get_by_text("Download all 2")
    button.wait_for()
    with tab.expect_download() as download:
        button.click()
    download.value.save_as(tmp_path / "all.zip")
    assert download.value.suggested_filename == "cutouts.zip"
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert archive.namelist() == ["car0_cutout.png", "car1_cutout.png"]
        assert archive.testzip() is None
    wait_until(tab, lambda: tab.evaluate(PREVIEWS) == [[72, 48], [72, 48]])


@needs_gradio
def test_photograph_of_the_file_chooser_is_framed(site, tab, tmp_path):
    folder, _ = site
    tab.locator("input[type=file]").first.set_input_files(folder / "car0.jpg")
    wait_until(tab, lambda: len(report(tab)) == 1)
    tab.get_by_label("background", exact=True).check()
    tab.get_by_label("fit", exact=True).check()
    tab.get_by_label("Canvas").fill("huge")
    tab.get_by_label("Canvas").press("Enter")
    tab.get_by_text("canvas: expected width and height in pixels").wait_for()
    tab.get_by_label("Canvas").fill("300x200")
    tab.get_by_label("Canvas").press("Enter")
    wait_until(tab, lambda: tab.evaluate(PREVIEWS) == [[300, 200], [300, 200]])
    with tab.expect_download() as download:
        tab.get_by_text("Download", exact=True).click()
    download.value.save_as(tmp_path / "car.jpg")
    assert download.value.suggested_filename == "car0_background.jpg"
    assert picture_width_height(tmp_path / "car.jpg") == (300, 200)


@needs_gradio
def test_example_of_the_documents_runs(site):
    folder, address = site
    text = (ROOT / "docs/inference.md").read_text(encoding="utf-8")
    (example,) = re.findall("```python\n(from gradio_client .*?)```", text, re.DOTALL)
    example = example.replace("http://127.0.0.1:7860", address).replace("car.jpg", "car0.jpg")
    example += "\nprint(files[0])"
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].endswith("car0_background.jpg")


@needs_gradio
def test_files_of_the_server_are_out_of_reach(site):
    folder, address = site
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{address}/gradio_api/file={folder / 'car0.jpg'}")
    file = {"path": str(folder / "car0.jpg"), "meta": {"_type": "gradio.FileData"}}
    choices = ["mask", "#ffffff", None, False, "as photographed", "9x9", 0.05, 0, BEST]
    body = json.dumps({"data": [[file], *choices]}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/gradio_api/call/mask", body, headers)
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/mask/{event}") as answer:
        assert answer.read().startswith(b"event: error")


@needs_gradio
def test_port_that_is_taken_is_said(site, run_process):
    folder, address = site
    port = address.rpartition(":")[2]
    arguments = ("--port", port, "--model", folder / BEST)
    finished = run_process("app.py", *arguments, status=2)
    assert f"--host 127.0.0.1 --port {port}: cannot listen there" in finished.stderr


def test_missing_gradio_is_said(work, run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    finished = run("app.py", *OWN_MODEL, status=2)
    assert finished.stderr == (
        "error: the page needs Gradio; pip install -r requirements-app.txt\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "0"), "--port: expected 1..65535, found 0"),
        (("--model", "missing.pth.tar"), "no model 'missing.pth.tar'"),
        (("--max-megapixels", "0"), "--max-megapixels: expected"),
    ],
)
def test_wrong_options_are_said(run, arguments, message):
    assert message in run("app.py", *arguments, status=2).stderr
