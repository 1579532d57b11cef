"""The server of the results page: renewed when runs finish, this machine only, runs' files only."""

import http.client
import socket
import threading
from contextlib import closing

import pytest

from scripts.jobs.protocols import RunKey
from scripts.report import main
from scripts.reporting.page import server
from scripts.reporting.page.build import build_page, render
from scripts.reporting.page.pictures import Pictures
from scripts.reporting.page.server import HOST, LivePage, PageServer
from scripts.reporting.results import Selection
from tests.scripts.reporting.synthetic import SyntheticRuns


def key(seed):
    return RunKey("base2novel", "train_base", "dtd", 16, "LightRA", "base2novel", seed)


class Client:
    """Asks a server."""

    def __init__(self, port):
        self.port = port

    def get(self, way, host=HOST):
        with closing(http.client.HTTPConnection(HOST, self.port, timeout=30)) as connection:
            connection.request("GET", way, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A client of a server of the test's folder, which looks at it whenever it is asked."""
    monkeypatch.setattr(server, "_RARELY", 0.0)

    def make(version):
        return render(build_page(Selection("", tmp_path), Pictures(0), None), version)

    with PageServer(LivePage(tmp_path, make), 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield Client(running.server_port)
        running.shutdown()
        thread.join()


def test_a_finished_run_makes_a_new_page(tmp_path, client):
    status, empty = client.get("/")
    assert (status, "No finished run yet" in empty) == (200, True)
    before = client.get("/version")[1]
    assert before in empty
    assert client.get("/version")[1] == before
    directory = SyntheticRuns(tmp_path, classes=3).write(key(1))
    after = client.get("/version")[1]
    assert after != before
    page = client.get("/")[1]
    assert after in page
    assert "Finished runs: 1," in page
    (directory / "result.json").unlink()
    assert client.get("/version")[1] not in (before, after)


def test_a_page_is_made_once_for_each_version(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_RARELY", 0.0)
    made = []
    live = LivePage(tmp_path, lambda version: made.append(version) or version)
    assert live.page() == live.page()
    assert len(made) == 1


def test_files_of_runs_and_nothing_else(tmp_path, client):
    directory = SyntheticRuns(tmp_path, classes=3).write(key(1))
    (directory / "secret.txt").write_text("secret")
    (tmp_path / "result.json").write_text("outside")
    way = f"/output/{directory.relative_to(tmp_path).as_posix()}"
    assert client.get(f"{way}/log.txt") == (200, (directory / "log.txt").read_text())
    assert client.get(f"{way}/result.json")[0] == 200
    for other in (
        f"{way}/secret.txt",
        f"{way}/none/log.txt",
        f"{way}/../seed1/log.txt",
        "/output/result.json",
        "/output/../../../../../../../../etc/passwd",
        "/etc/passwd",
    ):
        assert client.get(other)[0] == 404, other


def test_predictions_are_handed_over_as_they_lie_there(tmp_path, client):
    """A table in gzip, which a browser saves: it is not text."""
    directory = SyntheticRuns(tmp_path, classes=3).write(key(1), predictions=True)
    file = directory / "predictions.csv.gz"
    with closing(http.client.HTTPConnection(HOST, client.port, timeout=30)) as connection:
        connection.request("GET", f"/output/{file.relative_to(tmp_path).as_posix()}")
        answer = connection.getresponse()
        assert answer.getheader("Content-Type") == "application/gzip"
        assert answer.read() == file.read_bytes()


def test_other_names_for_this_machine_are_refused(client):
    assert client.get("/", host="evil.example")[0] == 403
    assert client.get("/version", host="localhost:8008")[0] == 200


def test_it_listens_on_the_loopback_only(tmp_path):
    with PageServer(LivePage(tmp_path, str), 0) as running:
        assert running.server_address[0] == "127.0.0.1"


def test_a_taken_port_costs_a_line(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as stop:
            main(["--output", str(tmp_path), "--serve", str(port)])
    assert stop.value.code == 2
    assert f"--serve {port}: Address already in use; name another port" in capsys.readouterr().err
