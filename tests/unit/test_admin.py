"""The worker's local door: asked from other processes' point of view, with the loop played by this test."""

import signal
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path

import pytest

from stream_dmgin.cli.main import main
from stream_dmgin.errors import InputError, StreamDmginError, UnavailableError
from stream_dmgin.worker.admin import Admin, ask, workers
from stream_dmgin.worker.between import Between


@pytest.fixture(params=["short", "deep"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path if request.param == "short" else tmp_path / ("d" * 120)


def fail(arguments, tell):
    raise InputError("that can't be")


def test_verbs_answer_tell_and_fail(data: Path) -> None:
    def count(arguments, tell):
        for k in range(arguments["to"]):
            tell({"at": k})
        return {"sum": sum(range(arguments["to"]))}

    with Admin(data, {"count": count, "fail": fail, "crash": lambda a, t: 1 / 0}) as admin:
        assert stat.S_IMODE(admin.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(admin.directory.stat().st_mode) == 0o700
        assert workers(data) == [admin.path]
        told: list[dict] = []
        assert ask(admin.path, "count", told.append, to=4) == {"sum": 6}
        assert told == [{"at": k} for k in range(4)]
        with pytest.raises(StreamDmginError, match="that can't be") as e:
            ask(admin.path, "fail")
        assert e.value.exit_code == 2
        with pytest.raises(StreamDmginError, match="ZeroDivisionError"):
            ask(admin.path, "crash")
        with pytest.raises(StreamDmginError, match="there are count, crash, fail, ping"):
            ask(admin.path, "fly")
    assert workers(data) == [] and not admin.path.exists()


def test_sockets_of_dead_workers_are_swept(data: Path) -> None:
    with Admin(data) as first, Admin(data) as second:
        assert set(workers(data)) == {first.path, second.path}
    with Admin(data) as admin:
        dead = socket.socket(socket.AF_UNIX)
        target = admin.directory / "1.sock"
        short = Path(tempfile.mkdtemp()) / "s"
        dead.bind(str(short))
        dead.close()
        short.replace(target)
        assert workers(data) == [admin.path]
        assert not target.exists()
    assert workers(data / "nothing here") == []


def test_an_asker_who_goes_away_harms_nothing(data: Path) -> None:
    went = threading.Event()
    done = threading.Event()

    def slow(arguments, tell):
        assert went.wait(60)
        for _ in range(1000):
            tell("x" * 1000)
        done.set()

    with Admin(data, {"slow": slow}) as admin:
        with pytest.raises(UnavailableError):
            ask(admin.path, "slow", timeout=0.2)
        went.set()
        assert done.wait(60)
        assert ask(admin.path, "ping")["pid"] > 0


def test_the_command_line_leaves_broken_pipes_to_their_writers(capsys: pytest.CaptureFixture[str]) -> None:
    """A worker is a command, too: a client that closes its connection must not end it."""
    with pytest.raises(SystemExit):
        main(["config", "show"])
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN


def test_jobs_run_on_the_loop_one_a_turn_in_order() -> None:
    between = Between()
    between.run()  # nothing to do
    loop = threading.get_ident()
    got: list[object] = []

    def asker(n: int) -> None:
        try:
            got.append(between.call(lambda: (n, threading.get_ident())))
        except StreamDmginError as e:
            got.append(str(e))

    threads = [threading.Thread(target=asker, args=(n,)) for n in range(3)]
    for t in threads:
        t.start()
    deadline = time.monotonic() + 60
    while len(between._jobs) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    between.run()
    assert len(between._jobs) == 2
    between.run()
    between.close()
    for t in threads:
        t.join(60)
    assert {g[1] for g in got if isinstance(g, tuple)} == {loop}
    assert [g for g in got if isinstance(g, str)] == ["the worker is stopping: ask again when it runs"]
    with pytest.raises(UnavailableError, match="stopping"):
        between.call(lambda: 0)


def test_a_job_that_fails_is_its_askers_affair() -> None:
    between = Between()
    seen: list[BaseException] = []

    def asker() -> None:
        try:
            between.call(lambda: fail({}, None))
        except InputError as e:
            seen.append(e)

    t = threading.Thread(target=asker)
    t.start()
    while t.is_alive():
        between.run()
    assert seen
    with pytest.raises(UnavailableError, match="has not come round"):
        between.call(lambda: 0, timeout=0.01)
    between.run()  # given up: not run
