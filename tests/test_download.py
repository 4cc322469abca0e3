"""Downloads from a local server that resumes or not, breaks off or lies: in the end a right file, or one sentence."""

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep.download import difference, download, obtain
from data_prep.official import COCO14_SOURCES, VOC12_SOURCES, Source
from wsss_lib.errors import DataError

CONTENT = os.urandom(300_000)


class Server(ThreadingHTTPServer):
    """Serves `content`; `ranges`: whether it can resume; `cuts`: bytes after which each of the next answers breaks off."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.cuts, self.status, self.asked, self.sent = CONTENT, True, [], 200, [], 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if begin >= len(server.content) and begin:
            self.send_error(416)
            return
        body = server.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: server.cuts.pop(0)] if server.cuts else body
        server.sent += len(body)
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def source(server) -> Source:
    return Source(
        "x.tar",
        f"http://127.0.0.1:{server.server_address[1]}/x.tar",
        "https://example.org/page",
        len(CONTENT),
        hashlib.sha256(CONTENT).hexdigest(),
    )


def test_a_file_comes_whole(server, source, tmp_path):
    path = download(source, tmp_path / "new", progress=False, pause=0)
    assert path.read_bytes() == CONTENT and [file.name for file in path.parent.iterdir()] == ["x.tar"]


def test_an_interrupted_download_is_resumed(server, source, tmp_path):
    server.cuts = [100_000, 50_000]
    assert download(source, tmp_path, progress=False, pause=0).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"] and server.sent == len(CONTENT)


def test_without_range_support_it_begins_anew(server, source, tmp_path):
    server.ranges, server.cuts = False, [100_000]
    assert download(source, tmp_path, progress=False, pause=0).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"] and server.sent == len(CONTENT) + 100_000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_later_run_goes_on_with_what_is_there(server, source, tmp_path, ranges):
    server.ranges, server.cuts = ranges, [1000, 0, 0, 0, 0] if ranges else [1000] * 5
    with pytest.raises(FileNotFoundError, match=r"0.0 MB of 0.3 MB have come .*run the same command again.*example.org/page"):
        download(source, tmp_path, progress=False, pause=0)
    assert {file.name: file.stat().st_size for file in tmp_path.iterdir()} == {"x.tar.wsss-download": 1000}
    server.cuts, server.asked = [], []
    assert download(source, tmp_path, progress=False, pause=0).read_bytes() == CONTENT and server.asked == ["bytes=1000-"]


def test_a_flipped_bit_is_noticed_and_nothing_stays(server, source, tmp_path):
    server.content = CONTENT[:5000] + bytes([CONTENT[5000] ^ 1]) + CONTENT[5001:]
    with pytest.raises(DataError, match=r"SHA-256 \w+…, the official one \w+…, so it was deleted; run again"):
        download(source, tmp_path, progress=False, pause=0)
    assert not list(tmp_path.iterdir())


def test_a_flipped_bit_in_what_was_left_is_noticed(server, source, tmp_path):
    (tmp_path / "x.tar.wsss-download").write_bytes(b"?" + CONTENT[1:200_000])
    with pytest.raises(DataError, match="SHA-256"):
        download(source, tmp_path, progress=False, pause=0)
    assert not list(tmp_path.iterdir()) and server.asked == ["bytes=200000-"]


def test_the_unfinished_download_of_a_browser_is_left_alone(server, source, tmp_path):
    (tmp_path / "x.tar.part").write_bytes(b"another file")
    assert download(source, tmp_path, progress=False, pause=0).read_bytes() == CONTENT
    assert (tmp_path / "x.tar.part").read_bytes() == b"another file" and server.asked == [None]


def test_a_leftover_that_is_too_long_is_given_up(server, source, tmp_path):
    (tmp_path / "x.tar.wsss-download").write_bytes(CONTENT + b"more")
    assert download(source, tmp_path, progress=False, pause=0).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"<html>moved</html>", CONTENT + b"more"])
def test_another_file_is_not_even_begun(server, source, tmp_path, content):
    server.content = content
    with pytest.raises(DataError, match=f"the server offers {len(content)} bytes"):
        download(source, tmp_path, progress=False, pause=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [403, 404])
def test_a_moved_file_names_the_official_page(server, source, tmp_path, status):
    server.status = status
    with pytest.raises(FileNotFoundError, match=f"the server answers {status} .*fetch x.tar from https://example.org/page"):
        download(source, tmp_path, progress=False, pause=0)
    assert len(server.asked) == 1 and not list(tmp_path.iterdir())


def test_a_busy_server_is_asked_again_but_not_for_ever(server, source, tmp_path):
    server.status = 503
    with pytest.raises(FileNotFoundError, match="0.0 MB of 0.3 MB have come"):
        download(source, tmp_path, progress=False, pause=0)
    assert len(server.asked) == 4


def test_no_network(source, server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError, match="https://example.org/page"):
        download(source, tmp_path, progress=False, pause=0)


def test_too_little_space_is_said_first(server, source, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="0.3 MB are needed, but only 0.0 MB are free"):
        download(source, tmp_path, progress=False)
    assert not server.asked


def test_a_file_that_is_there_is_taken_from_any_folder(server, source, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.tar").write_bytes(CONTENT)
    assert obtain(source, [tmp_path / "a", tmp_path / "b"], progress=False) == tmp_path / "b/x.tar" and not server.asked


@pytest.mark.parametrize(
    "content, problem", [(CONTENT[:-1], "has 299999 bytes, the official one 300000"), (CONTENT[:-1] + b"?", "has SHA-256")]
)
def test_a_wrong_file_that_is_there_is_named_and_kept(server, source, tmp_path, content, problem):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        obtain(source, [tmp_path], progress=False)
    assert (tmp_path / "x.tar").read_bytes() == content and not server.asked
    assert difference(tmp_path / "x.tar", source, progress=False)


def test_nothing_is_fetched_unasked(server, source, tmp_path):
    with pytest.raises(FileNotFoundError, match="x.tar: missing; fetch it .* from https://example.org/page"):
        obtain(source, [tmp_path], fetch=False)
    assert not server.asked


def test_the_official_files_have_sizes_and_checksums():
    sources = [*VOC12_SOURCES.values(), *COCO14_SOURCES.values()]
    assert len({item.sha256 for item in sources}) == len(sources) == 5
    for item in sources:
        assert item.size > 10**8 and int(item.sha256, 16) and len(item.sha256) == 64
        assert item.url.endswith("/" + item.name) and Path(item.name).suffix in (".tar", ".tgz", ".zip")
        assert item.page.startswith("http")
