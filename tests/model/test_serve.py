"""The page of ``micron serve``: what it refuses, what it keeps and for how long, and what a browser shows of it."""

import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from micron_model.data import synthetic_clips
from micron_model.web import app as module
from micron_model.web.app import Limits, make_app
from micron_model.web.jobs import WAITING
from micron_model.web.results import Looking, Result
from writers import write_images, write_video

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
#: Fulfilled when every picture of the page is there. Asked again and again, an expression would be text that is run as
#: a script, which the page's Content-Security-Policy forbids.
DRAWN = "Promise.all([...document.images].map((image) => image.decode()))"


class Served:
    """An application at a free port of 127.0.0.1, while it is entered."""

    def __init__(self, looking, limits=None, names=()):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = make_app(looking, limits, names=names)
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", ws="none", loop="asyncio"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self):
        self.thread.start()
        page = self.ask("GET", "/")[1].decode()
        self.token = json.loads(re.search(r'id="about">(.*?)</script>', page)[1])["token"]
        self.folder = Path(self.inner.folder)
        return self

    @property
    def inner(self):
        """What holds the uploads, behind the guard and the router."""
        return self.app.app.routes[0].endpoint.__self__

    def __exit__(self, *exception):
        self.server.should_exit = True
        self.thread.join(20)
        self.socket.close()

    def ask(self, method, path, body=None, **headers):
        """(status, body) of a request; ``Host`` and the like may be given with underscores."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        found = answer.status, answer.read()
        self.headers = answer.headers
        connection.close()
        return found

    def send(self, method, path, body=None):
        """As the page does; what was answered, read."""
        status, said = self.ask(method, path, body, X_Micron_Token=self.token)
        return status, json.loads(said) if said else {}

    def upload(self, name, data):
        return self.send("POST", f"/uploads?name={name}", data)

    def job(self, *uploads):
        return self.send("POST", "/jobs", json.dumps({"uploads": list(uploads)}))

    def wait(self, job):
        deadline = time.monotonic() + 300
        while True:
            _, said = self.send("GET", f"/jobs/{job}")
            if said["state"] in ("done", "failed"):
                return said
            assert time.monotonic() < deadline
            time.sleep(0.02)


class Slow(Looking):
    """Looks for as long as the test says."""

    go_on = threading.Event()

    def video(self, path, name, progress, *, fps=None):
        while not Slow.go_on.is_set():
            progress(1, 2)
            time.sleep(0.01)
        return Result({"source": name}, {})


@pytest.fixture
def slow():
    Slow.go_on.clear()
    with Served(Slow(), Limits(megabytes=0.01)) as served:
        yield served
        Slow.go_on.set()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8760"}, 200),
        ({"Host": "evil.example"}, 403),  # a name that its owner makes lead to 127.0.0.1
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "evil@127.0.0.1"}, 200),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_only_addresses_and_localhost_name_the_page(slow, headers, status):
    assert slow.ask("GET", "/", **headers)[0] == status


def test_a_name_that_was_allowed_names_it_too():
    with Served(Slow(), names=["Lab.example"]) as served:
        assert served.ask("GET", "/", Host="lab.example:8760")[0] == 200
        assert served.ask("GET", "/", Host="other.example")[0] == 403


def test_other_pages_change_nothing(slow):
    for method, path in (("POST", "/uploads?name=a.mp4"), ("POST", "/jobs"), ("DELETE", "/jobs/x")):
        assert slow.ask(method, path, b"{}")[0] == 403
        assert slow.ask(method, path, b"{}", X_Micron_Token="x" * 43)[0] == 403
        foreign = {"X_Micron_Token": slow.token, "Origin": "http://evil.example"}
        assert slow.ask(method, path, b"{}", **foreign)[0] == 403
        assert slow.ask(method, path, b"{}", X_Micron_Token=slow.token, Sec_Fetch_Site="same-site")[0] == 403
    assert slow.ask("GET", "/page.js", Sec_Fetch_Site="cross-site")[0] == 403
    assert slow.ask("OPTIONS", "/uploads", Origin="http://evil.example")[0] == 403
    assert "Access-Control-Allow-Origin" not in slow.headers
    assert list(slow.folder.iterdir()) == []


def test_every_answer_forbids_scripts_and_frames_of_others(slow):
    for path in ("/", "/page.js", "/jobs/none", "/none"):
        slow.ask("GET", path)
        assert "default-src 'none'" in slow.headers["Content-Security-Policy"]
        assert slow.headers["X-Content-Type-Options"] == "nosniff"
        assert slow.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    _, page = slow.ask("GET", "/")
    assert not re.search(r'(src|href)="(https?:)?//', page.decode())


def test_no_path_leads_out_of_what_is_served(slow):
    for path in (
        "/../pyproject.toml",
        "/..%2f..%2fapp.py",
        "/app.py",
        "/page.js%00",
        "/jobs/..%2f..",
        "//etc/passwd",
    ):
        assert slow.ask("GET", path)[0] in (403, 404)
    _, said = slow.upload("..%2f..%2f%3Cimg%20src=x%3E.mp4", b"x")
    (kept,) = slow.folder.iterdir()
    assert kept.suffix == ".mp4"
    _, job = slow.job(said["upload"])
    Slow.go_on.set()
    assert slow.wait(job["job"])["result"]["source"] == "<img src=x>.mp4"
    for name in ("..%2fcandidates.json", "%2fetc%2fpasswd", "none.png"):
        assert slow.ask("GET", f"/jobs/{job['job']}/{name}")[0] == 404


def test_what_is_too_large_or_of_another_kind_is_refused_in_a_sentence_and_not_kept(slow):
    assert slow.upload("a.mp4", b"x" * 10_001) == (
        413, {"error": "a.mp4 is larger than 0.01 MB, which are allowed (micron serve --megabytes)"}
    )  # fmt: skip
    blocks = (b"x" * 4000 for _ in range(3))  # in chunks: nothing states the length
    assert slow.send("POST", "/uploads?name=a.mp4", blocks)[0] == 413
    status, said = slow.upload("a.exe", b"x")
    assert status == 415
    assert said["error"].startswith("a.exe is neither a video nor a picture")
    assert slow.upload("", b"x")[0] == 415
    assert list(slow.folder.iterdir()) == []


def test_a_connection_that_breaks_leaves_nothing(slow):
    with socket.create_connection(("127.0.0.1", slow.port)) as broken:
        broken.sendall(
            f"POST /uploads?name=a.mp4 HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Micron-Token: {slow.token}\r\n"
            "Content-Length: 5000\r\n\r\nxxx".encode()
        )
        deadline = time.monotonic() + 10
        while not list(slow.folder.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    while list(slow.folder.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_uploads_that_nobody_asks_for_are_few_and_go(slow, monkeypatch):
    answers = [slow.upload("a.mp4", b"x")[0] for _ in range(9)]
    assert answers == [201] * 8 + [503]
    monkeypatch.setattr(module, "_UNASKED", 0.0)
    assert slow.upload("b.exe", b"x")[0] == 415
    assert list(slow.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[]", 400), (b"{", 400), (b"[" * 4000, 400), (b'{"uploads": [1]}', 400), (b'{"uploads": "x"}', 400),
        (b'{"uploads": ["x"]}', 410), (b" " * 5000, 400),
    ],
)  # fmt: skip
def test_other_requests_than_those_of_the_page_are_refused(slow, body, status):
    assert slow.send("POST", "/jobs", body)[0] == status


def test_one_is_worked_on_and_the_others_wait_and_can_be_stopped(slow):
    jobs = []
    for _ in range(WAITING + 1):
        jobs.append(slow.job(slow.upload("a.mp4", b"x")[1]["upload"])[1]["job"])
        while slow.send("GET", f"/jobs/{jobs[0]}")[1]["state"] == "waiting":
            time.sleep(0.01)
    states = [slow.send("GET", f"/jobs/{job}")[1] for job in jobs]
    assert [said["state"] for said in states] == ["working"] + ["waiting"] * WAITING
    assert [said["ahead"] for said in states] == list(range(WAITING + 1))
    status, said = slow.job(slow.upload("a.mp4", b"x")[1]["upload"])
    assert (status, said["error"]) == (503, "8 others wait already; try again in a while")
    for job in jobs:
        assert slow.ask("DELETE", f"/jobs/{job}", X_Micron_Token=slow.token)[0] == 204
        assert slow.send("GET", f"/jobs/{job}")[0] == 404
    deadline = time.monotonic() + 10
    while list(slow.folder.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_takes_too_long_is_stopped_and_says_so():
    Slow.go_on.clear()
    with Served(Slow(), Limits(job_minutes=0.001)) as served:
        said = served.wait(served.job(served.upload("a.mp4", b"x")[1]["upload"])[1]["job"])
        assert said["state"] == "failed"
        assert "--job-minutes allows more" in said["message"]


def test_all_that_was_uploaded_goes_when_the_server_ends():
    Slow.go_on.clear()
    with Served(Slow()) as served:
        served.job(served.upload("a.mp4", b"x")[1]["upload"])
        served.upload("b.mp4", b"x")
        assert list(served.folder.iterdir())
    assert not served.folder.exists()


@pytest.fixture(scope="module")
def served(recognizer):
    with Served(Looking(recognizer, recognizer.backbone, seconds=5.0)) as served:
        yield served


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    clip = synthetic_clips([0])[0]
    folder = write_images(tmp_path_factory.mktemp("pair") / "faces", clip.read([clip.onset, clip.apex], 96))
    return [folder / f"img{i}.png" for i in (1, 2)]


def test_faults_of_a_file_are_sentences_with_its_own_name(served, tmp_path):
    video = write_video(tmp_path / "no face.avi", np.zeros((40, 3, 64, 64), np.uint8), fps=60.0)
    long = write_video(tmp_path / "long.avi", np.zeros((40, 3, 32, 32), np.uint8), fps=5.0)
    for name, data, message in (
        ("text.mp4", b"text", "text.mp4: no frame can be decoded"),
        ("no%20face.avi", video.read_bytes(), "no face.avi: no face was found"),
        ("long.avi", long.read_bytes(), "long.avi: lasts 8 s, and 5 are allowed"),
    ):
        said = served.wait(served.job(served.upload(name, data)[1]["upload"])[1]["job"])
        assert message in said["message"]
        assert str(served.folder) not in said["message"]
    one = served.upload("a.png", b"x")[1]["upload"]
    assert served.job(one)[1]["error"] == "give one video, or two pictures: onset and apex"
    both = [served.upload(f"{name}.png", b"x")[1]["upload"] for name in "ab"]
    assert "a.png: is not an image" in served.wait(served.job(*both)[1]["job"])["message"]
    assert list(served.folder.iterdir()) == []


def test_two_pictures_are_laid_over_each_other_and_mapped(served, pair):
    uploads = [served.upload(path.name, path.read_bytes())[1]["upload"] for path in pair]
    job = served.job(*uploads)[1]["job"]
    found = served.wait(job)["result"]
    assert [picture["file"] for picture in found["pictures"]] == [
        "onset.png", "apex.png", "registered.png", "difference.png", "flow.png", "micro-attention.png",
        "patch-of-interest.png",
    ]  # fmt: skip
    assert found["source"] == [path.name for path in pair]
    archive = zipfile.ZipFile(io.BytesIO(served.ask("GET", f"/jobs/{job}/micron.zip")[1]))
    assert len(archive.namelist()) == 8
    assert served.ask("GET", f"/jobs/{job}/flow.png")[1] == archive.read("flow.png")
    assert list(served.folder.iterdir()) == []


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
@pytest.mark.skipif(
    importlib.util.find_spec("playwright") is None,
    reason="Playwright is missing: pip install -e '.[browser]'",
)
def test_a_browser_shows_it(served, pair, tmp_path):
    """The synthetic clip, its curve and candidates; two pictures; a file that is none; at two widths."""
    from playwright.sync_api import sync_playwright

    pictures = Path(os.environ.get("MICRON_SCREENSHOTS", tmp_path))
    (tmp_path / "<img src=x onerror=document.title='run'>.mp4").write_text("no video")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.set_default_timeout(240_000)
        faults, asked = [], set()
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.add(request.url.split("/")[2]))
        page.goto(served.url)
        page.screenshot(path=pictures / "start.png", full_page=True)
        page.click("#synthetic")
        page.wait_for_selector("#movements button")
        page.evaluate(DRAWN)
        assert page.locator("#movements button").count() == 3
        assert page.locator("rect.span.micro").count() == 3
        before = page.inner_text("#what")
        page.locator("rect.span").nth(1).click()
        assert page.inner_text("#what") != before
        assert page.locator("#movements button").nth(1).get_attribute("aria-pressed") == "true"
        assert page.locator("#panels img").count() == 7
        assert page.locator(".class").count() == 2
        assert "This is no lie detector" in page.inner_text("#note")
        page.evaluate(DRAWN)
        page.screenshot(path=pictures / "desktop.png", full_page=True)
        with page.expect_download() as download:
            page.click("text=all of it as JSON")
        assert len(json.loads(Path(download.value.path()).read_text())["candidates"]) == 3
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        drawn = page.locator("#plot svg").get_attribute("viewBox").split()
        assert int(drawn[2]) <= 390
        page.screenshot(path=pictures / "phone.png", full_page=True)
        page.set_input_files("#files", pair)
        page.wait_for_selector("#panels img[src$='flow.png']")
        assert page.inner_text("#source") == "img1.png and img2.png"
        page.set_input_files("#files", next(tmp_path.glob("*.mp4")))
        page.wait_for_selector("#error:not([hidden])")
        assert "<img src=x onerror" in page.inner_text("#error")
        assert "no frame can be decoded" in page.inner_text("#error")
        page.screenshot(path=pictures / "error.png")
        assert page.title() == "micron: movements of a face"
        assert asked == {f"127.0.0.1:{served.port}"}
        assert faults == []
        browser.close()
