"""Downloads of data files. Checked are the address before anything is fetched, each connection when it is made, and the file while it comes."""

from __future__ import annotations

import base64
import codecs
import contextlib
import http
import ipaddress
import re
import shutil
import socket
import time
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpcore
import httpx

from .background import Job
from .file_tools import ToolError, must_be_free
from .paths import path_for_new, shown_name, whole_file

DOWNLOADS = (".txt", ".json", ".jsonl", ".csv")
LARGEST_DOWNLOAD = 20 * 2**30  # bytes, unpacked
TIMEOUT = 30  # seconds without an answer
LONGEST = 6 * 3600  # seconds in all: the largest file at 1 MB a second
REDIRECTS = 5
HEAD = 2**20  # bytes of which the kind of a file is told

# Global to Python's ipaddress, or to older versions of it, and yet no places of the public internet.
_NOT_PUBLIC = [ipaddress.ip_network(network) for network in ("192.0.0.0/24", "64:ff9b:1::/48", "3fff::/20", "5f00::/16", "fec0::/10")]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_BROKEN = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.ProxyError)


def download_target(url: str, folder: Path, overwrite: bool) -> Path:
    """Where the file of an address will lie: in the folder, under the name at the address's end.

    Raises:
        ToolError: not an http address, not a data file, there already, or there under a name that only looks different.
    """
    name = unquote(_address(url).raw_path.partition(b"?")[0].rpartition(b"/")[2].decode("ascii"))
    if not name.lower().endswith(DOWNLOADS):
        raise ToolError(f"Download: the address ends with “{shown_name(name)}”; it must end with a file name: {', '.join(DOWNLOADS)}.")
    try:
        target = path_for_new(folder, name)
    except ValueError as error:
        raise ToolError(f"Download: {error}") from error
    if name.startswith("."):
        raise ToolError(f"Download: the file name “{name}” begins with a dot, and no list would show it. Fetch it in another way.")
    must_be_free([target], overwrite)
    return target


def download(url: str, target: Path, allow_private: bool = False) -> Iterator[tuple[int, int | None]]:
    """Fetch a file; yields the bytes so far and in all (None: not known). It is there when the last was yielded.

    Args:
        allow_private: whether the address may lead to this machine or its network. What a public address redirects to may not, even then.

    Raises:
        ToolError: the address leads where it may not, the server refuses, the connection fails, the file is not what its name says, or it is
            too large or too slow; nothing is left behind.
    """
    address = _address(url)
    deadline = time.monotonic() + LONGEST
    was_there = target.exists()
    try:
        with _answer(address, allow_private, deadline) as answer:
            size = _size(answer)
            if size is not None and size > LARGEST_DOWNLOAD:
                raise _too_large()
            if size is not None and size > shutil.disk_usage(target.parent).free:
                raise ToolError(f"Download: the file has {size:,} bytes, and less is free on the disk. Make room, then try again.")
            head, done = bytearray(), 0
            with whole_file(target) as file:
                for piece in _unpacked(answer):
                    if len(head) < HEAD:
                        head += piece[: HEAD - len(head)]
                        if len(head) == HEAD:
                            _check_kind(target.name, answer, head, whole=False)
                    done += len(piece)
                    if done > LARGEST_DOWNLOAD:
                        raise _too_large()
                    file.write(piece)
                    yield done, size
                if len(head) < HEAD:
                    _check_kind(target.name, answer, head, whole=True)
                if target.exists() and not was_there:
                    raise ToolError(f"Download: “{target.name}” was made by something else meanwhile, and is kept as it is. Nothing was downloaded.")
    except _BROKEN as error:
        if time.monotonic() >= deadline:
            raise ToolError(
                f"Download: it took longer than {_duration(LONGEST)} and was ended. Nothing was kept; fetch it in another way."
            ) from error
        raise ToolError(
            f"Download: {_host(address)} could not be reached, or the connection broke ({type(error).__name__}). Nothing was kept; try again."
        ) from error
    except zlib.error as error:
        raise ToolError("Download: what the server sent is damaged (it cannot be unpacked). Nothing was kept; try again.") from error
    except OSError as error:
        raise ToolError(f"Download: “{target.name}” could not be written ({error.strerror or type(error).__name__}). Nothing was kept.") from error


# The address


def _address(url: str) -> httpx.URL:
    """The address, read by the library that also connects: two readers may see two hosts in one text.

    Raises:
        ToolError: it is none of http or https.
    """
    with contextlib.suppress(httpx.InvalidURL, ValueError):  # ValueError: a host that cannot be written in the names' own alphabet
        address = httpx.URL(url.strip())
        if address.scheme in ("http", "https") and address.host and (address.port or 80) < 2**16:
            return address
    raise ToolError(f"Download: “{_without_secrets(url)}” is not an address that begins with http:// or https:// and names a server.")


def _without_secrets(url: str) -> str:
    """The text of an address for a message, without name and password, and without what is asked for, which may hold a token."""
    named = re.sub(r"^([\w+.-]+:(?=/))?(/*).*@", r"\1\2", url.strip(), flags=re.DOTALL)
    return shown_name(re.split(r"[?#]", named)[0])


def _host(address: httpx.URL) -> str:
    return shown_name(address.netloc.decode("ascii"))  # without name and password


def _redirected(address: httpx.URL, location: str) -> httpx.URL:
    try:
        goal = _address(str(address.join(location)))
    except (ToolError, httpx.InvalidURL, ValueError) as error:
        raise ToolError(f"Download: {_host(address)} redirects to “{_without_secrets(location)}”, which is not an http address.") from error
    if address.scheme == "https" and goal.scheme == "http":
        raise ToolError(f"Download: {_host(address)} redirects from https:// to http://, where others could read and change the file. Not followed.")
    if (goal.scheme, goal.host, goal.port) == (address.scheme, address.host, address.port) and not goal.userinfo:
        goal = goal.copy_with(username=address.username, password=address.password)  # they are for this server, and for no other
    return goal


# The connection


def is_public(address: str) -> bool:
    """Whether an IP address is a place of the public internet: not this machine, its network, a group or a reserved range."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
    elsewhere = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved or ip.is_unspecified
    return ip.is_global and not elsewhere and not any(ip in network for network in _NOT_PUBLIC if network.version == ip.version)


@contextlib.contextmanager
def _answer(address: httpx.URL, allow_private: bool, deadline: float) -> Iterator[httpcore.Response]:
    """The answer that is no redirect; each redirect is checked as the first address was."""
    for _ in range(REDIRECTS + 1):
        with contextlib.ExitStack() as opened:
            connecting = _Connecting(allow_private, deadline)
            pool = opened.enter_context(_pool(address, connecting))
            answer = opened.enter_context(
                pool.stream(
                    "GET",
                    httpcore.URL(scheme=address.raw_scheme, host=address.raw_host, port=address.port, target=address.raw_path),
                    headers=_headers(address),
                    extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT)},
                )
            )
            location = _header(answer, "location")
            if answer.status not in (301, 302, 303, 307, 308) or not location:
                if not 200 <= answer.status < 300:
                    raise ToolError(f"Download: the server answers {answer.status} {_phrase(answer.status)}. Check the address.")
                yield answer
                return
        address, allow_private = _redirected(address, location), allow_private and connecting.private
    raise ToolError(f"Download: the address redirects more than {REDIRECTS} times. Open it in a browser and copy the address of the file itself.")


def _pool(address: httpx.URL, connecting: _Connecting) -> httpcore.ConnectionPool | httpcore.HTTPProxy:
    """Connections that httpcore makes through `connecting`, or through the proxy of the environment.

    A proxy looks up the name itself, so that where it connects cannot be checked: only someone who may reach private addresses
    anyway is sent through it, and for all others the environment's proxies do not count. SOCKS needs a package that no host brings.
    """
    arguments: dict[str, Any] = {"network_backend": connecting}
    if address.scheme == "https":
        arguments["ssl_context"] = httpx.create_ssl_context()  # with the certificates of SSL_CERT_FILE, which httpcore's own knows nothing of
    if connecting.allow_private and (proxy := _proxy(address)) is not None:
        auth = (proxy.username, proxy.password) if proxy.userinfo else None
        plain = httpcore.URL(scheme=proxy.raw_scheme, host=proxy.raw_host, port=proxy.port, target=b"/")
        return httpcore.HTTPProxy(plain, auth, **arguments)
    return httpcore.ConnectionPool(**arguments)


def _proxy(address: httpx.URL) -> httpx.URL | None:
    known = urllib.request.getproxies()
    named = known.get(address.scheme) or known.get("all")
    with contextlib.suppress(httpx.InvalidURL, ValueError):
        if named and not _is_near(address.host) and not urllib.request.proxy_bypass(address.host):
            proxy = httpx.URL(named if "://" in named else f"http://{named}")
            return proxy if proxy.scheme in ("http", "https") and proxy.host else None
    return None


def _is_near(host: str) -> bool:
    """Whether a host as it is written is this machine or its network, where no proxy leads."""
    with contextlib.suppress(ValueError):
        return not is_public(host)
    return host == "localhost" or host.endswith(".localhost")


class _Connecting(httpcore.NetworkBackend):
    """How httpcore connects here: a name is looked up once, all that it leads to is checked, and exactly that is connected to.

    `private` is whether the last connection led to this machine or its network.
    """

    def __init__(self, allow_private: bool, deadline: float):
        self.allow_private, self.deadline, self.private = allow_private, deadline, False
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(self, host: str, port: int, timeout: Any = None, local_address: Any = None, socket_options: Any = None) -> httpcore.NetworkStream:
        found = _looked_up(host, port, _left(self.deadline, timeout))
        self.private = not all(map(is_public, found))
        if self.private and not self.allow_private:
            # What the name stands for is not said: a stranger could read the names of the network from it.
            raise ToolError(
                f"Download: “{shown_name(host)}” leads to this machine or to its own network. Such an address is fetched only for a browser on this "
                "machine, when the page is not open to others and no public address redirects to it. Put the file into the folder by hand."
            )
        failed: Exception = httpcore.ConnectError("no address")
        for address in found:
            try:
                stream = self._sockets.connect_tcp(address, port, _left(self.deadline, timeout), local_address, socket_options)
                return _Stream(stream, self.deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed


def _looked_up(host: str, port: int, timeout: float) -> list[str]:
    """The IP addresses of a name. The system's own look-up takes no time limit, so one that takes too long is left to itself."""
    job = Job(lambda progress: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    if not job.done.wait(timeout):
        raise ToolError(
            f"Download: where “{shown_name(host)}” lies could not be found out in {timeout:.0f} seconds. Check the address, or try again."
        )
    if isinstance(job.error, (OSError, UnicodeError)):
        raise ToolError(f"Download: there is no server “{shown_name(host)}”, or no connection. Check the address.") from job.error
    if job.error is not None:
        raise job.error
    return list(dict.fromkeys(str(entry[4][0]) for entry in job.result))


class _Stream(httpcore.NetworkStream):
    """A connection that ends at `deadline`, also when a byte comes now and then: httpcore's own timeout begins anew with each."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float):
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, timeout))

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline, timeout)), self._deadline)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, timeout: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left if timeout is None else min(left, timeout)


# The answer


def _headers(address: httpx.URL) -> dict[str, str]:
    # Sent by httpcore, which writes no addresses into logs; httpx writes each, with its password and tokens.
    headers = {"Accept": "*/*", "Accept-Encoding": "gzip", "User-Agent": "Training-PRO"}
    if address.username or address.password:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{address.username}:{address.password}".encode()).decode("ascii")
    return headers


def _header(answer: httpcore.Response, name: str) -> str:
    """The values of a header, joined as HTTP has it; in small letters but for a location."""
    values = [value.decode("latin-1") for key, value in answer.headers if key.lower() == name.encode()]
    return values[0].strip() if name == "location" and values else ", ".join(values).strip().lower()


def _size(answer: httpcore.Response) -> int | None:
    """The number of bytes of the file where the server says it; of a packed one only the packed size is known, which says nothing."""
    said = _header(answer, "content-length")
    return int(said) if re.fullmatch("[0-9]{1,18}", said) and _header(answer, "content-encoding") in ("", "identity") else None


def _unpacked(answer: httpcore.Response) -> Iterator[bytes]:
    """The pieces of the file, at most a megabyte each: a packed one may grow a thousandfold."""
    packing = _header(answer, "content-encoding")
    if packing in ("", "identity"):
        yield from answer.iter_stream()
    elif packing in ("gzip", "x-gzip"):
        yield from _gunzipped(answer.iter_stream())
    else:
        raise ToolError(f"Download: the server sends the file packed as “{shown_name(packing)}”, which is not asked for. Fetch it in another way.")


def _gunzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(31)
    began = False
    for piece in pieces:
        while piece:
            if unpacker.eof:  # a file may be several packed ones, one after the other
                unpacker = zlib.decompressobj(31)
            began = True
            if plain := unpacker.decompress(piece, 2**20):
                yield plain
            piece = unpacker.unused_data.lstrip(b"\0") if unpacker.eof else unpacker.unconsumed_tail
    while began and not unpacker.eof:
        if not (plain := unpacker.decompress(b"", 2**20)):
            raise zlib.error("it ends too early")
        yield plain


def _check_kind(name: str, answer: httpcore.Response, head: bytearray, whole: bool) -> None:
    """Refuse what is not the kind of file that its name says, by its beginning.

    Args:
        whole: whether `head` is the whole file; otherwise its last character may be cut in two.
    """
    begin = head.removeprefix(codecs.BOM_UTF8).lstrip()[:200].lower()
    if not begin:
        raise ToolError(f"Download: “{name}” is empty on the server. Nothing was kept.")
    says_page = _header(answer, "content-type").startswith(("text/html", "application/xhtml"))
    if begin.startswith((b"<!doctype html", b"<html")) or (says_page and begin.startswith(b"<")):
        raise ToolError(
            f"Download: the address leads to a web page and not to the file “{name}”. On GitHub take the address behind “Raw”, on Hugging Face the one "
            "behind “download”, which has /resolve/ in place of /blob/. A page that asks for a login cannot be passed."
        )
    if begin.startswith(b"version https://git-lfs.github.com/spec/"):
        raise ToolError(
            f"Download: the address leads to a pointer to “{name}” (Git LFS), not to the file. On Hugging Face take /resolve/ in place of /raw/, "
            "on GitHub the address behind “Download raw file”."
        )
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError as error:
        raise ToolError(f"Download: “{name}” is not UTF-8 text (byte {error.start + 1:,}). {_AS_TEXT}") from error
    if b"\0" in head:
        raise ToolError(f"Download: “{name}” is not text: byte {head.index(0) + 1:,} is zero. {_AS_TEXT}")
    if name.lower().endswith(".json") and not begin.startswith((b"[", b"{")):
        raise ToolError(f"Download: “{name}” is not JSON: it begins with neither [ nor {{. Check the address.")


_AS_TEXT = "A packed file has to be unpacked first, and another encoding saved as UTF-8. Nothing was kept."


def _phrase(status: int) -> str:
    with contextlib.suppress(ValueError):
        return http.HTTPStatus(status).phrase
    return "(not a status of HTTP)"


def _too_large() -> ToolError:
    return ToolError(f"Download: the file is larger than {LARGEST_DOWNLOAD // 2**30} GB; fetch it in another way.")


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:g} hours" if seconds >= 3600 else f"{seconds:g} seconds"
