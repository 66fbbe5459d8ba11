"""Downloads from real servers on this machine. Where a test needs a server of the public internet, `public` takes 127.0.0.1 for one."""

import base64
import contextlib
import gzip
import json
import logging
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import types
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_pro import downloads
from training_pro.downloads import download, download_target, is_public
from training_pro.file_tools import ToolError

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@contextlib.contextmanager
def serving(answer):
    """A server that calls `answer(handler)` for each request; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(OSError):  # the other side may go at any time
                answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def send(handler, content=b"hello", status=200, length=None, **headers):
    handler.send_response(status)
    handler.send_header("content-length", str(length or len(content)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def served(content=b"hello", status=200, length=None, **headers):
    return serving(lambda handler: send(handler, content, status, length, **headers))


def fetched(url, folder, overwrite=False, allow_private=True):
    target = download_target(url, folder, overwrite)
    return target, list(download(url, target, allow_private))


@pytest.fixture
def public(monkeypatch):
    """127.0.0.1 counts as public here, and all else as it is."""
    real = downloads.is_public
    monkeypatch.setattr(downloads, "is_public", lambda address: address == "127.0.0.1" or real(address))


@pytest.fixture
def names(monkeypatch):
    """What names lead to: a table of name → list of answers, the last of which stays; `names.asked` counts."""
    real = socket.getaddrinfo
    table = types.SimpleNamespace(answers={}, asked=[])

    def look_up(host, port, *rest, **options):
        if host not in table.answers:
            return real(host, port, *rest, **options)
        table.asked.append(host)
        answers = table.answers[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


# The target


def test_a_download_arrives_whole_and_is_not_written_over_unasked(tmp_path):
    with served(b"x" * 3_000_000) as address:
        path, seen = fetched(f"{address}/folder/my%20data.txt?download=true", tmp_path)
        assert path.name == "my data.txt" and path.stat().st_size == 3_000_000 and seen[-1] == (3_000_000, 3_000_000)
        with pytest.raises(ToolError, match="Tick Overwrite to replace it"):
            download_target(f"{address}/my%20data.txt", tmp_path, False)
        with pytest.raises(ToolError, match=r"“My data.txt” is there already as “my data.txt”"):
            download_target(f"{address}/My%20data.txt", tmp_path, True)
    with served(b"new") as address:
        assert fetched(f"{address}/my%20data.txt", tmp_path, True)[0].read_bytes() == b"new"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.org/a.txt", "not an address that begins with http"),
        ("file:///etc/passwd.txt", "not an address that begins with http"),
        ("gopher://127.0.0.1:6379/_x.txt", "not an address that begins with http"),
        ("data:text/plain,hello/a.txt", "not an address that begins with http"),
        ("javascript:alert(1)/a.txt", "not an address that begins with http"),
        ("//example.org/a.txt", "not an address that begins with http"),
        ("example.org/a.txt", "not an address that begins with http"),
        ("http:a.txt", "not an address that begins with http"),
        ("http:///a.txt", "not an address that begins with http"),
        ("http://user@/a.txt", "not an address that begins with http"),
        ("http://host:99999/a.txt", "not an address that begins with http"),
        ("http://host:x/a.txt", "not an address that begins with http"),
        ("http://ho\0st/a.txt", "not an address that begins with http"),
        ("http://host/a.txt\r\nX-Evil: 1", "not an address that begins with http"),
        ("http://host/" + "a" * 70_000 + ".txt", "not an address that begins with http"),
        ("http://\ud800/a.txt", "not an address that begins with http"),
        ("", "not an address"),
        ("https://example.org/a.exe", "must end with a file name"),
        ("https://example.org/a.txt.exe", "must end with a file name"),
        ("https://example.org/a.exe?x=/b.txt", "must end with a file name"),
        ("https://example.org/a.exe#/b.txt", "must end with a file name"),
        ("https://example.org/", "must end with a file name"),
        ("https://example.org", "must end with a file name"),
        ("https://example.org/..%2F..%2Fa.txt", "holds “/”"),
        ("https://example.org/..%5C..%5Ca.txt", "holds “\\”"),
        ("https://example.org/C%3A%5Ca.txt", "holds “:”"),
        ("https://example.org/a.txt%00.txt", "holds the character U+0000"),
        ("https://example.org/%E2%80%AEtxt.txt", "holds the character U+202E"),
        ("https://example.org/.txt", "begins with a dot"),
        ("https://example.org/.hidden.json", "begins with a dot"),
        ("https://example.org/~a.txt", "leads out of its folder"),
        ("https://example.org/con.txt", "Windows keeps for itself"),
        ("https://example.org/COM%C2%B9.csv", "Windows keeps for itself"),
    ],
)
def test_what_is_no_data_file_is_refused_before_anything_is_fetched(tmp_path, url, words):
    with pytest.raises(ToolError) as refused:
        download_target(url, tmp_path, False)
    assert words in str(refused.value) and len(str(refused.value)) < 300
    str(refused.value).encode("utf-8")
    assert list(tmp_path.iterdir()) == []


PIECES = [
    "http://",
    "https:",
    "//",
    "/",
    "a.txt",
    "..",
    "%2e%2e",
    "%2F",
    "%5C",
    "%00",
    "@",
    ":",
    "?",
    "#",
    "[",
    "]",
    "\\",
    " ",
    "\0",
    "\ud800",
    "é",
    "con.json",
]


@given(st.text(st.characters(), max_size=30) | st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_any_text_gives_a_file_of_the_folder_or_a_sentence(text):
    folder = Path(tempfile.gettempdir())
    for url in (text, f"http://host/{text}.txt", f"https://{text}/a.json"):
        try:
            target = download_target(url, folder, True)
        except ToolError as refused:
            str(refused).encode("utf-8")
            continue
        assert target.parent == folder and target.suffix.lower() in downloads.DOWNLOADS


def test_a_name_that_is_a_link_leading_out_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ToolError, match=r"“a.txt” is a link that leads out of datasets"):
        download_target("http://example.org/a.txt", tmp_path / "datasets", True)


# Where it may lead

NOT_PUBLIC = """
127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.0.1 169.254.169.254 100.64.0.1 100.127.255.255
192.0.0.1 192.0.0.170 192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 fe80::1 fe80::1%2 fec0::1 fc00::1 fd12:3456::1 ff02::1 ff0e::1 2001:db8::1 3fff::1 100::1 5f00::1 2001::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0.0.0.0 ::127.0.0.1 ::7f00:1
64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b:1::1 2002:7f00:1:: 2002:a00:1:: 2002:c0a8:1::
""".split()
PUBLIC = "1.1.1.1 8.8.8.8 93.184.215.14 172.32.0.1 172.15.0.1 100.63.0.1 100.128.0.1 11.0.0.1 192.167.0.1 2606:4700::1111 2a00:1450::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8".split()


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_addresses_that_are_not_of_the_public_internet(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are(address):
    assert is_public(address)


WRITTEN = """127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 0 0.0.0.0 [::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [0:0:0:0:0:0:0:1]
localhost LOCALHOST user@127.0.0.1 127.0.0.1. 10.0.0.1 192.168.1.1 3232235777 169.254.169.254 2852039166 0xa9fea9fe [fe80::1] [fd00::1] [ff02::1] 224.0.0.1
255.255.255.255 ①②⑦.⓪.⓪.① 127。0。0。1""".split()  # fmt: skip


@pytest.mark.parametrize("host", WRITTEN)
def test_hosts_that_lead_to_this_machine_or_its_network_however_they_are_written(tmp_path, host, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("it was connected to"))
    with pytest.raises(ToolError, match=r"leads to this machine or to its own network|there is no server|not an address"):
        fetched(f"http://{host}:9/a.txt", tmp_path, allow_private=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1"])
def test_a_person_at_this_machine_may(tmp_path, host):
    with served() as address:
        url = f"http://{host}:{address.rpartition(':')[2]}/a.txt"
        with pytest.raises(ToolError, match="only for a browser on this machine"):
            fetched(url, tmp_path, allow_private=False)
        assert fetched(url, tmp_path)[0].read_bytes() == b"hello"


@pytest.mark.parametrize("found", [["10.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["::1", "2606:4700::1111"], ["169.254.169.254"]])
def test_a_name_is_refused_when_any_of_its_addresses_is_private(tmp_path, names, found, monkeypatch):
    names.answers["inside.example"] = [found]
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("it was connected to"))
    with pytest.raises(ToolError, match=r"“inside.example” leads to this machine") as refused:
        fetched("https://inside.example/a.txt", tmp_path, allow_private=False)
    assert not any(address in str(refused.value) for address in found)  # a stranger does not learn the network's addresses


def test_a_name_that_leads_elsewhere_the_second_time_does_not_help(tmp_path, names, monkeypatch):
    """DNS rebinding: what was checked is what is connected to."""
    with serving(lambda handler: send(handler, handler.headers["host"].encode())) as address:
        port = int(address.rpartition(":")[2])
        names.answers["rebound.example"] = [["93.184.215.14"], ["127.0.0.1"]]
        connected = []

        def connect(goal, *_, **__):
            connected.append(goal)
            plain = socket.socket()
            plain.connect(("127.0.0.1", port))  # stands for the public server
            return plain

        monkeypatch.setattr(socket, "create_connection", connect)
        path, _ = fetched(f"http://rebound.example:{port}/a.txt", tmp_path, allow_private=False)
        assert connected == [("93.184.215.14", port)] and names.asked == ["rebound.example"]
        assert path.read_text() == f"rebound.example:{port}"  # the server is asked for by its name
        with pytest.raises(ToolError, match="leads to this machine"):  # now it leads to 127.0.0.1
            fetched(f"http://rebound.example:{port}/b.txt", tmp_path, allow_private=False)
        assert len(connected) == 1


def test_the_next_address_of_a_name_is_tried(tmp_path, names):
    with served() as address:
        names.answers["two.example"] = [["::1", "127.0.0.1"]]
        assert fetched(address.replace("127.0.0.1", "two.example") + "/a.txt", tmp_path)[0].is_file()


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl on this machine, which makes the certificate")
@pytest.mark.parametrize("name", ["here.example", "elsewhere.example"])
def test_the_certificate_is_that_of_the_name(tmp_path, names, monkeypatch, name):
    import ssl

    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=here.example",
            "-addext", "subjectAltName=DNS:here.example"]  # fmt: skip
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    names.answers[name] = [["127.0.0.1"]]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            send(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        url = f"https://{name}:{server.server_port}/a.txt"
        if name == "here.example":
            assert fetched(url, tmp_path)[0].read_bytes() == b"hello"
        else:
            with pytest.raises(ToolError, match=f"{name}:[0-9]+ could not be reached"):
                fetched(url, tmp_path)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("host", ["a" * 70 + ".org", "a..b", "%5b", "[", "nowhere.invalid", "xn--" + "a" * 80])
def test_a_host_that_is_none_gives_a_sentence(tmp_path, host):
    with pytest.raises(ToolError, match=r"there is no server|not an address"):
        fetched(f"http://{host}/a.txt", tmp_path)


# Redirects


def redirecting(goal, status=302):
    """/to/… answers with a redirect to `goal(path)`, all else with the file."""

    def answer(handler):
        if handler.path.startswith("/to/"):
            send(handler, b"<html>moved", status, location=goal(handler.path))
        else:
            send(handler, (handler.headers["authorization"] or "none").encode())

    return serving(answer)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(tmp_path, status):
    with redirecting(lambda _: "../file", status) as address:
        assert fetched(f"{address}/to/a.txt", tmp_path)[0].read_bytes() == b"none"


def test_at_most_five_redirects_are_followed(tmp_path):
    def shorter(path):
        return path[:-1] if path.count("x") else "/file"

    with redirecting(shorter) as address:
        assert [download_target(f"{address}/to/a.txt", tmp_path, False)]
        target = tmp_path / "a.txt"
        list(download(f"{address}/to/xxxx", target, True))
        assert target.read_bytes() == b"none"
        with pytest.raises(ToolError, match="redirects more than 5 times"):
            list(download(f"{address}/to/xxxxx", target, True))


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("ftp://example.org/a.txt", "redirects to “ftp://example.org/a.txt”, which is not an http address"),
        ("file:///etc/passwd", "redirects to “file:///etc/passwd”, which is not an http address"),
        ("ftp://me:secret@example.org/a?token=secret", "redirects to “ftp://example.org/a”"),
        ("http://host:99999/", "which is not an http address"),
        ("http://\x01/", "which is not an http address"),
        ("http://127.0.0.2:1/a.txt", "“127.0.0.2” leads to this machine"),
        ("//169.254.169.254/latest/meta-data", "“169.254.169.254” leads to this machine"),
        ("http://[::1]:1/", "“::1” leads to this machine"),
        ("http://[::ffff:127.0.0.3]/", "leads to this machine"),
        ("http://0x7f.2/", "“0x7f.2” leads to this machine"),
        ("http://2130706434/", "“2130706434” leads to this machine"),
        ("http://inside.example/", "“inside.example” leads to this machine"),
    ],
)
@pytest.mark.parametrize("allow_private", [False, True])  # what a person at this machine allows is the address they typed
def test_where_a_public_address_may_not_redirect(tmp_path, public, names, location, words, allow_private):
    names.answers["inside.example"] = [["10.1.2.3"]]
    with redirecting(lambda _: location) as address, pytest.raises(ToolError) as refused:
        fetched(f"{address}/to/a.txt", tmp_path, allow_private=allow_private)
    assert words in str(refused.value) and "secret" not in str(refused.value) and "10.1.2.3" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_an_address_of_this_network_may_redirect_within_it(tmp_path):
    with served(b"there") as there, redirecting(lambda _: there.replace("127.0.0.1", "localhost") + "/x") as address:
        assert fetched(f"{address}/to/a.txt", tmp_path)[0].read_bytes() == b"there"


def test_https_does_not_redirect_to_http():
    import httpx

    with pytest.raises(ToolError, match="from https:// to http://"):
        downloads._redirected(httpx.URL("https://example.org/a.txt"), "http://example.org/a.txt")
    assert downloads._redirected(httpx.URL("http://example.org/a.txt"), "https://example.org/b").scheme == "https"


# Passwords


def test_a_password_goes_to_its_server_alone_and_into_no_message_or_log(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    seen = "Basic " + base64.b64encode(b"me:s p@ss").decode()
    with redirecting(lambda path: "/file") as address:
        url = address.replace("//", "//me:s%20p%40ss@")
        assert fetched(f"{url}/a.txt?token=hf_x", tmp_path)[0].read_text() == seen
        assert fetched(f"{url}/to/b.txt?token=hf_x", tmp_path)[0].read_text() == seen  # the same server
        with redirecting(lambda path: f"{address}/file") as other:
            assert fetched(other.replace("//", "//me:s%20p%40ss@") + "/to/c.txt", tmp_path)[0].read_text() == "none"
    for url in (
        "http://me:s%20p%40ss@127.0.0.1:1/d.txt?token=hf_x",
        "ftp://me:s%20p%40ss@127.0.0.1/d.txt?token=hf_x",
        "me:s%20p%40ss@127.0.0.1/d.txt",
        "ftp://me:s%20p%40s?s#@127.0.0.1/d.txt",
        "http://me:s%20p%40ss@nowhere.invalid/d.txt",
        "http://me:s%20p%40ss@[::1/d.txt?token=hf_x",
        "https://me:s%20p%40ss@example.org/d.exe?token=hf_x",
    ):
        with pytest.raises(ToolError) as refused:
            fetched(url, tmp_path)
        assert not any(part in str(refused.value) for part in ("s%20p", "s p@", "%40s", "me:s", "//me", "hf_x", "token")), str(refused.value)
    with pytest.raises(ToolError) as refused:
        fetched("http://me:s%20p%40ss@127.0.0.1/d.txt", tmp_path, allow_private=False)
    assert "s%20p" not in str(refused.value) and "hf_x" not in caplog.text and "s%20p" not in caplog.text and "/a.txt" not in caplog.text


# Size and time


def test_a_download_that_breaks_leaves_nothing(tmp_path):
    with served(b"x", status=404) as address, pytest.raises(ToolError, match="the server answers 404 Not Found"):
        fetched(f"{address}/a.txt", tmp_path)
    with served(b"x", status=599) as address, pytest.raises(ToolError, match="the server answers 599 "):
        fetched(f"{address}/a.txt", tmp_path)
    with served(b"short", length=1000) as address, pytest.raises(ToolError, match="the connection broke"):
        fetched(f"{address}/a.txt", tmp_path)
    with pytest.raises(ToolError, match="could not be reached"):
        fetched("http://127.0.0.1:1/a.txt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_stays_when_a_download_fails(tmp_path):
    (tmp_path / "a.txt").write_text("old", encoding="utf-8")
    for content, headers in ((b"<!doctype html>", {}), (b"x\0", {}), (b"short", {"length": 99})):
        with served(content, **headers) as address, pytest.raises(ToolError):
            fetched(f"{address}/a.txt", tmp_path, True)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_download_that_is_given_up_leaves_nothing(tmp_path):
    with served(b"x" * 500_000) as address:
        coming = download(f"{address}/a.txt", tmp_path / "a.txt", True)
        next(coming)
        coming.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_came_to_be_meanwhile_is_kept(tmp_path):
    with served(b"x" * 500_000) as address:
        coming = download(f"{address}/a.txt", tmp_path / "a.txt", True)
        next(coming)
        (tmp_path / "a.txt").write_text("of another", encoding="utf-8")
        with pytest.raises(ToolError, match="was made by something else meanwhile"):
            list(coming)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "of another"


def test_a_folder_that_cannot_be_written_gives_a_sentence_without_its_path(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / ".a.txt.part"))

    monkeypatch.setattr("os.fsync", full)
    with served() as address, pytest.raises(ToolError, match=r"“a.txt” could not be written \(No space left on device\)") as refused:
        fetched(f"{address}/a.txt", tmp_path)
    assert str(tmp_path) not in str(refused.value) and list(tmp_path.iterdir()) == []


def counting(handler, sent):
    """A file without end, of a size that is not said."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 100_000)
        sent.append(100_000)


def test_a_file_that_is_too_large_is_refused_as_soon_as_it_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "LARGEST_DOWNLOAD", 2_000_000)
    sent = []
    with serving(lambda handler: counting(handler, sent)) as address, pytest.raises(ToolError, match="the file is larger than"):
        fetched(f"{address}/a.txt", tmp_path)
    with served(b"x", length=2_000_001) as address, pytest.raises(ToolError, match="the file is larger than"):
        fetched(f"{address}/a.txt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_on_the_disk_is_not_begun(tmp_path):
    with served(b"x", length=10**15) as address, pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads, "LARGEST_DOWNLOAD", 10**18)
        with pytest.raises(ToolError, match="the file has 1,000,000,000,000,000 bytes, and less is free"):
            fetched(f"{address}/a.txt", tmp_path)


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "0x10", "1e3", "²", "5, 6"])
def test_a_size_that_is_none(tmp_path, length):
    """The file comes whole, or a sentence and nothing of it."""
    with served(b"hello", length=length.encode().decode("latin-1")) as address:
        try:
            fetched(f"{address}/a.txt", tmp_path)
        except ToolError:
            assert list(tmp_path.iterdir()) == []
        else:
            assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"hello"]


def dripping(where):
    """A server that sends a byte now and then, in its headers or in its file, and never comes to an end."""

    def answer(handler):
        if where == "body":
            handler.send_response(200)
            handler.end_headers()
        elif where == "headers":
            handler.wfile.write(b"HTTP/1.0 200 OK\r\nx: ")
        for _ in range(100):
            if where == "informational":
                handler.wfile.write(b"HTTP/1.1 102 Wait\r\n\r\n")
            elif where != "silent":
                handler.wfile.write(b"x")
            time.sleep(0.1)

    return serving(answer)


@pytest.mark.parametrize("where", ["body", "headers", "informational", "silent"])
def test_a_server_that_drips_is_left_at_the_end_of_the_time(tmp_path, monkeypatch, where):
    monkeypatch.setattr(downloads, "LONGEST", 0.7)
    with dripping(where) as address:
        began = time.monotonic()
        with pytest.raises(ToolError, match=r"took longer than 0.7 seconds and was ended"):
            fetched(f"{address}/a.txt", tmp_path)
        assert time.monotonic() - began < 4
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_says_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    with dripping("silent") as address, pytest.raises(ToolError, match=r"could not be reached, or the connection broke \(ReadTimeout\)"):
        fetched(f"{address}/a.txt", tmp_path)


def test_the_time_limit_holds_over_redirects(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "LONGEST", 0.5)

    def slow(handler):
        time.sleep(0.2)
        send(handler, b"", 302, location="/again")

    with serving(slow) as address, pytest.raises(ToolError, match="took longer than"):
        fetched(f"{address}/a.txt", tmp_path)


# The kind

PAGE = "the address leads to a web page and not to the file"


@pytest.mark.parametrize(
    ("name", "content", "headers", "words"),
    [
        ("a.txt", b"<!DOCTYPE html><p>Log in", {}, PAGE),
        ("a.json", b"\xef\xbb\xbf \n<HTML><p>", {}, PAGE),
        ("a.csv", b"<!-- x --><head>", {"content_type": "text/html; charset=utf-8"}, PAGE),
        ("a.jsonl", b"<?xml version='1.0'?><html>", {"content_type": "application/xhtml+xml"}, PAGE),
        ("a.txt", b"", {}, "“a.txt” is empty on the server"),
        ("a.txt", b" \n", {}, "“a.txt” is empty on the server"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", {}, "a pointer to “a.txt” (Git LFS)"),
        ("a.txt", "naïve".encode("latin-1"), {}, "is not UTF-8 text (byte 3)"),
        ("a.txt", "über".encode("utf-16"), {}, "is not UTF-8 text (byte 1)"),
        ("a.csv", b"a,b\n1,\0", {}, "is not text: byte 7 is zero"),
        ("a.txt", b"x" * 1_100_000 + b"\xff", {}, None),  # only the first megabyte is looked at
        ("a.txt", b"x" * 900_000 + b"\0" + b"x" * 900_000, {}, "byte 900,001 is zero"),
        ("a.txt", b"x" + "é".encode() * 700_000, {}, None),  # cut in two at the megabyte
        ("a.txt", b"hello \xc3", {}, "is not UTF-8 text (byte 7)"),  # cut in two at the end
        ("a.jsonl", gzip.compress(b"{}"), {}, "is not UTF-8 text"),
        ("a.json", b"PK\x03\x04\x14\0", {}, "is not text: byte 6 is zero"),
        ("a.json", b"hello", {}, "is not JSON: it begins with neither [ nor {"),
        ("a.JSON", b'"a"', {}, "is not JSON"),
        ("a.json", b'\xef\xbb\xbf\r\n [{"a": 1}]', {}, None),
        ("a.json", b'{"a": 1}', {"content_type": "text/html"}, None),  # a server that names every file so
        ("a.txt", b"a < b", {"content_type": "text/html"}, None),
        ("a.txt", b"<story>", {}, None),
        ("a.jsonl", b'{"a": 1}\n', {}, None),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_kind_of_a_file_is_looked_at(tmp_path, name, content, headers, words, packed):
    sent, headers = (gzip.compress(content), {**headers, "content_encoding": "gzip"}) if packed else (content, headers)
    with served(sent, **headers) as address:
        if words is None:
            assert fetched(f"{address}/{name}", tmp_path)[0].read_bytes() == content
            return
        with pytest.raises(ToolError) as refused:
            fetched(f"{address}/{name}", tmp_path)
    assert words in str(refused.value) and list(tmp_path.iterdir()) == []
    if words == PAGE:
        assert "GitHub" in str(refused.value) and "“Raw”" in str(refused.value) and "/resolve/" in str(refused.value)


# Packed


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", " gzip "])
def test_a_packed_file_is_unpacked_and_its_packed_size_is_not_taken_for_its_own(tmp_path, encoding):
    text = json.dumps([{"n": n} for n in range(200_000)]).encode()
    with served(gzip.compress(text), content_encoding=encoding) as address:
        path, seen = fetched(f"{address}/a.json", tmp_path)
    assert path.read_bytes() == text and seen[-1] == (len(text), None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"one ") + gzip.compress(b"two") + b"\0" * 10, b"one two"),
        (gzip.compress(b"hello" * 10_000)[:-20], "is damaged"),
        (b"not packed", "is damaged"),
        (zlib.compress(b"hello"), "is damaged"),
        (b"", "is empty on the server"),
    ],
)
def test_packed_files_of_several_parts_and_damaged_ones(tmp_path, content, words):
    with served(content, content_encoding="gzip") as address:
        if isinstance(words, bytes):
            assert fetched(f"{address}/a.txt", tmp_path)[0].read_bytes() == words
        else:
            with pytest.raises(ToolError, match=words):
                fetched(f"{address}/a.txt", tmp_path)
            assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "gzip,br", "unknown"])
def test_a_packing_that_is_not_asked_for_is_refused(tmp_path, encoding):
    with served(b"hello", content_encoding=encoding) as address, pytest.raises(ToolError, match=f"packed as “{encoding}”, which is not asked for"):
        fetched(f"{address}/a.txt", tmp_path)


def test_a_bomb_is_stopped_at_the_limit_and_takes_no_memory(tmp_path, monkeypatch):
    import tracemalloc

    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(b"x" * 2**20) for _ in range(500)) + packer.flush()
    assert len(bomb) < 600_000
    monkeypatch.setattr(downloads, "LARGEST_DOWNLOAD", 100 * 2**20)
    with served(bomb, content_encoding="gzip") as address:
        tracemalloc.start()
        with pytest.raises(ToolError, match="the file is larger than"):
            fetched(f"{address}/a.txt", tmp_path)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 30 * 2**20 and list(tmp_path.iterdir()) == []


# Proxies


@pytest.fixture
def proxy():
    """A proxy that answers all itself, and what it was asked."""
    asked = []

    def answer(handler):
        asked.append((handler.path, handler.headers["proxy-authorization"]))
        send(handler, b"by proxy")

    with serving(answer) as address:
        yield types.SimpleNamespace(address=address, asked=asked)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_person_at_this_machine_goes_through_the_proxy_of_the_environment(tmp_path, monkeypatch, proxy, name):
    monkeypatch.setenv(name, proxy.address.replace("//", "//p:secret@"))
    assert fetched("http://far.example/a.txt", tmp_path)[0].read_bytes() == b"by proxy"
    assert proxy.asked == [("http://far.example/a.txt", "Basic " + base64.b64encode(b"p:secret").decode())]
    with served() as address:  # what is near is not asked of a proxy
        assert fetched(f"{address}/b.txt", tmp_path)[0].read_bytes() == b"hello"
        assert fetched(address.replace("127.0.0.1", "localhost") + "/c.txt", tmp_path)[0].read_bytes() == b"hello"


def test_a_stranger_does_not(tmp_path, monkeypatch, proxy, names, public):
    monkeypatch.setenv("HTTP_PROXY", proxy.address)
    names.answers["inside.example"] = [["10.0.0.1"]]
    with pytest.raises(ToolError, match="leads to this machine"):
        fetched("http://inside.example/a.txt", tmp_path, allow_private=False)
    assert proxy.asked == []


@pytest.mark.parametrize("named", ["socks5://127.0.0.1:1", "http://", "ftp://x"])
def test_a_proxy_that_cannot_be_used_is_none(tmp_path, monkeypatch, named, names):
    monkeypatch.setenv("ALL_PROXY", named)
    with served() as address:
        names.answers["far.example"] = [["127.0.0.1"]]
        assert fetched(address.replace("127.0.0.1", "far.example") + "/a.txt", tmp_path)[0].read_bytes() == b"hello"


# Who asks


def request(client="127.0.0.1", host="127.0.0.1:7860", bound="127.0.0.1", share=False, **headers):
    page = types.SimpleNamespace(server_name=bound, share=share)
    return types.SimpleNamespace(
        client=types.SimpleNamespace(host=client),
        headers={"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}},
        app=types.SimpleNamespace(get_blocks=lambda: page),
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"host": "localhost:7860"}, True),
        ({"client": "::1", "host": "[::1]:7860", "bound": "::1"}, True),
        ({"bound": "localhost"}, True),
        ({"client": "192.168.0.7"}, False),
        ({"bound": "0.0.0.0"}, False),
        ({"bound": "192.168.0.2"}, False),
        ({"bound": "::"}, False),
        ({"bound": None}, False),
        ({"share": True}, False),
        ({"host": "abc.gradio.live"}, False),
        ({"host": "rebound.example:7860"}, False),
        ({"host": "127.0.0.1.example:7860"}, False),
        ({"host": "[::1"}, False),
        ({"host": ""}, False),
        ({"x_forwarded_for": "1.2.3.4"}, False),
        ({"X_Forwarded_Proto": "https"}, False),
        ({"forwarded": "for=1.2.3.4"}, False),
        ({"cf_connecting_ip": "1.2.3.4"}, False),
    ],
)
def test_who_is_at_this_machine(changes, expected):
    from training_pro.tab_tools import on_this_machine

    assert on_this_machine(request(**changes)) is expected


def test_of_a_page_in_another_program_nothing_is_known():
    from training_pro.tab_tools import on_this_machine

    for unknown in (None, types.SimpleNamespace(), types.SimpleNamespace(headers={"host": "127.0.0.1"}, client=None, app=None)):
        assert on_this_machine(unknown) is False


@pytest.mark.parametrize(("bound", "expected"), [("127.0.0.1", "True"), ("0.0.0.0", "False")])
def test_a_real_page_says_who_asks(bound, expected):
    import gradio as gr
    from gradio_client import Client
    from training_pro.tab_tools import on_this_machine

    def asked(text, request: gr.Request):
        yield f"{on_this_machine(request)}"

    with gr.Blocks(analytics_enabled=False) as blocks:
        text = gr.Textbox()
        gr.Button().click(asked, [text], [text], api_name="asked")
    blocks.queue()
    _, url, _ = blocks.launch(server_name=bound, prevent_thread_lock=True, quiet=True)
    try:
        assert Client(url.replace("0.0.0.0", "127.0.0.1"), verbose=False).predict("x", api_name="/asked") == expected
    finally:
        blocks.close()


def test_a_look_up_that_takes_too_long_is_left_to_itself(monkeypatch):
    import threading

    from training_pro import downloads

    never = threading.Event()
    monkeypatch.setattr(downloads.socket, "getaddrinfo", lambda *_, **__: never.wait(30))
    with pytest.raises(downloads.ToolError, match=r"where “slow.example” lies could not be found out in 0 seconds"):
        downloads._looked_up("slow.example", 80, 0.1)
    never.set()
