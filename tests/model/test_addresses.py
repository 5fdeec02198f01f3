"""What was typed may be an address; what was found is a file, whatever its name."""

import os
import shutil
import ssl
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from micron_model.addresses import Address, expand, open_address
from micron_model.cli import main
from micron_model.data import ShardPairs, are_shards, find_shards
from micron_model.data.databases.corpus import Corpus
from micron_model.data.shards.read import read_shard

#: Names that something asked for a shard could take for more than a name.
ODD_NAMES = [
    "pipe:touch pwned; cat shard-000000.tar #.tar",
    "PIPE:touch pwned #.tar",
    "pipe:touch pwned::pipe:touch pwned #.tar",
    "http:127.0.0.1:9?.tar",
    "file:shard.tar",
    "hdfs:shard.tar",
    "-.tar",
    "{a,b}.tar",
    "{0..999999999}.tar",
    "${HOME}.tar",
    "[ab]*?.tar",
    "$(touch pwned).tar",
    "`touch pwned`.tar",
    "a|touch pwned.tar",
    "\n.tar",
]


@pytest.fixture
def folder(shards, tmp_path, monkeypatch):
    """The current folder, which holds a shard by each odd name and nothing else."""
    folder = tmp_path / "found"
    folder.mkdir()
    for name in (*map(os.fsencode, ODD_NAMES), b"caf\xe9.tar"):
        shutil.copy(shards[0], os.fsencode(folder) + b"/" + name)
    monkeypatch.chdir(folder)
    return folder


def runs_of(shards):
    return [(runs[0].key, problems) for runs, problems in map(read_shard, shards)]


@pytest.mark.parametrize("source", [".", "*.tar", Path(".")])
def test_what_is_found_is_a_file_whatever_its_name(folder, shards, source):
    found = find_shards([source], allow_commands=True)
    assert found == sorted(str(folder / name) for name in os.listdir(folder))
    assert not any(isinstance(shard, Address) for shard in found)
    ((key, _),) = runs_of(shards[:1])
    assert runs_of(found) == [(key, [])] * (len(ODD_NAMES) + 1)
    assert not (folder / "pwned").exists()


def test_a_name_that_a_shell_found_is_a_file(folder, shards):
    """``--data *.tar``: the shell types what it finds."""
    for name in sorted(set(os.listdir(folder)) - {"-.tar"}):
        assert are_shards([name])
        assert runs_of(find_shards([name], allow_commands=True)) == runs_of(shards[:1])
    assert not (folder / "pwned").exists()


def test_strings_that_are_no_address_are_files(folder, shards):
    """Of a glob of the caller's own, for one."""
    for name in (ODD_NAMES[0], *shards[:1]):
        stream = iter(ShardPairs([name], 24))
        assert next(stream)["problems"] == []
    assert read_shard("pipe:touch pwned")[1][0].reason.endswith("(No such file or directory)")
    assert not (folder / "pwned").exists()


def test_training_on_a_folder_runs_nothing_that_lies_in_it(folder, tmp_path):
    tiny = (
        "--preset tiny --training.steps 1 --training.batch-size 2 --training.workers 0 --training.device cpu"
    )
    assert main(["pretrain", "--data", ".", "--out", str(tmp_path / "trained"), *tiny.split()]) == 0
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize(
    "prefix", ["pipe:", "PIPE:", "pipe://", "Pipe:", "https://host/a.tar::pipe:", "{pipe:,}"]
)
def test_a_command_needs_leave(tmp_path, monkeypatch, refused, prefix):
    monkeypatch.chdir(tmp_path)
    command = f"{prefix}touch pwned"
    with pytest.raises(ValueError, match=r"touch pwned: is a command .* allow it with --allow-commands"):
        find_shards([command])
    printed = refused(["pretrain", "--data", command, "--out", str(tmp_path / "out")])
    assert "allow it with --allow-commands" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_command_with_leave_runs(shards, tmp_path):
    (address,) = find_shards([f"pipe:touch {tmp_path}/ran; cat {shards[0]}"], allow_commands=True)
    assert runs_of([address]) == runs_of(shards[:1])
    assert (tmp_path / "ran").exists()


def test_what_addresses_hold_is_not_known(shards):
    folder = Path(shards[0]).parent
    assert Corpus.of(find_shards([f"pipe:cat {folder}/shard-000000.tar"], allow_commands=True)) == Corpus(
        None
    )
    assert Corpus.of(shards).clips


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{0..999999999}.tar", r"\{0\.\.999999999\} stands for 1000000000 names; at most 100000"),
        ("{999999999..0}{0..1}.tar", "stands for 1000000000 names"),
        ("http://host/{0..999}{0..999}.tar", "stands for more than 100000 names"),
        ("{{0..99},{0..99}}{0..999}.tar", "stands for more than 100000 names"),
        ("{0..1.tar", "has a brace that is not closed"),
        ("${nothing_of_this_name}.tar", "names a variable that is not set"),
    ],
)
def test_braces_without_end_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        expand(name)


@contextmanager
def server(answer, context=None):
    """The address of a server whose answer to GET ``answer(handler)`` writes; of https, given a context."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer(self)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as served:
        if context is not None:
            served.socket = context.wrap_socket(served.socket, server_side=True)
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http{'s' * (context is not None)}://127.0.0.1:{served.server_port}", asked
        finally:
            served.shutdown()
            thread.join()


def redirect(to):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.end_headers()

    return answer


def status_of(address):
    _, problems = read_shard(Address(address))
    return problems[-1].reason


@pytest.mark.skipif(shutil.which("curl") is None, reason="addresses of the network are asked for by curl")
def test_a_redirect_leads_to_no_file_and_not_round_for_ever(shards):
    with server(redirect(f"file://{shards[0]}")) as (address, _):
        assert status_of(f"{address}/a.tar").startswith("it sends on to an address that is not https")


@pytest.mark.skipif(shutil.which("curl") is None, reason="addresses of the network are asked for by curl")
def test_a_redirect_does_not_reach_what_has_no_https():
    with server(redirect("/")) as (inside, asked_inside), server(redirect(f"{inside}/stop")) as (address, _):
        assert "not https; type that address" in status_of(f"{address}/a.tar")
        assert asked_inside == []


@pytest.fixture
def https(tmp_path, monkeypatch):
    """A context in which ``server`` speaks https, with a certificate that curl trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "1",
               "-keyout", str(key), "-out", str(certificate)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("CURL_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.skipif(
    None in (shutil.which("curl"), shutil.which("openssl")), reason="needs curl and a certificate"
)
def test_https_leads_to_https_of_another_host_without_the_password(shards, https, monkeypatch):
    headers = []

    def send(handler):
        headers.append(handler.headers)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(Path(shards[0]).read_bytes())

    with server(send, https) as (other, _):
        to = other.replace("127.0.0.1", "localhost")
        with server(redirect(f"{to}/there.tar"), https) as (address, _):
            given = address.replace("https://", "https://user:secret@")
            assert runs_of([Address(f"{given}/a.tar")]) == runs_of(shards[:1])
        (of_the_other,) = headers
        assert "Authorization" not in of_the_other
    monkeypatch.setattr("micron_model.addresses._RETRIES", 0)
    with server(redirect("/again.tar"), https) as (address, asked):
        assert "sends elsewhere for ever" in status_of(f"{address}/a.tar")
        assert len(asked) == 6


@pytest.mark.skipif(shutil.which("curl") is None, reason="addresses of the network are asked for by curl")
def test_a_server_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr("micron_model.addresses._HUNG", 1)
    monkeypatch.setattr("micron_model.addresses._RETRIES", 0)
    done = threading.Event()
    with server(lambda handler: done.wait(20)) as (address, _):
        stream = open_address(Address(f"{address}/a.tar"))
        stream.ignore_errors = True
        try:
            stream.proc.wait(15)
        finally:
            done.set()
            stream.proc.kill()
        stream.close()
    assert stream.status == 28  # curl: timeout
