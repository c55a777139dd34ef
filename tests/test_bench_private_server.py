"""A private server is a real one: killed, it forgets nothing that was committed; and it leaves nothing behind."""

from __future__ import annotations

import re
import signal
from contextlib import closing
from pathlib import Path

import psycopg
import pymysql
import pytest

from bench import engines, private_servers, servers
from bench.private_servers import PrivateServer, private_server
from bench.processes import Spawner, lives
from bench.waiting import eventually

GONE = (psycopg.OperationalError, pymysql.err.OperationalError)
SERVED: list[engines.ServedKind] = ["postgresql", "mariadb"]
SETTING = {"postgresql": {"max_prepared_transactions": "7"}, "mariadb": {"max-connections": "17"}}
SHOW = {"postgresql": "SHOW max_prepared_transactions", "mariadb": "SELECT @@max_connections"}
PROGRAM = """
import sys, threading
from pathlib import Path
from bench.private_servers import private_server
with private_server(sys.argv[1], Path.cwd()) as server:
    server.database()
    print("home", server.home, "pids", *server.pids, flush=True)
    threading.Event().wait()
"""


def refuses(server: PrivateServer) -> bool:
    """Whether nobody listens at its port."""
    try:
        engines.connect(server.config).close()
    except GONE:
        return True
    return False


@pytest.mark.parametrize("kind", SERVED)
def test_a_killed_server_finds_what_was_committed(kind: engines.ServedKind, tmp_path: Path) -> None:
    """On the same port, with its settings; what was not committed is gone; an orderly stop keeps everything too."""
    with private_server(kind, tmp_path, settings=SETTING[kind]) as server:
        database = server.database()
        database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY)")
        database.execute("INSERT INTO item VALUES (1)")
        assert str(database.scalar(SHOW[kind])) in {"7", "17"}
        with (
            closing(engines.connect(database.config)) as open_transaction,
            closing(open_transaction.cursor()) as cursor,
        ):
            cursor.execute("BEGIN")
            cursor.execute("INSERT INTO item VALUES (2)")
            pids = server.pids
            server.kill()
            assert not any(lives(pid) for pid in pids[1:]), "a child of the server outlives it"
            assert refuses(server)
            with pytest.raises(GONE):
                cursor.execute("COMMIT")
        server.start()
        assert database.rows("SELECT id FROM item") == [(1,)]
        server.restart()
        database.execute("INSERT INTO item VALUES (3)")
        assert database.rows("SELECT id FROM item ORDER BY id") == [(1,), (3,)]
        assert str(database.scalar(SHOW[kind])) in {"7", "17"}
        server.stop()
        assert refuses(server)
        home, pids = server.home, server.pids
    assert (home.exists(), pids) == (False, [])
    assert next(tmp_path.glob("*.log")).read_text(), "what the server wrote is lost"


@pytest.mark.parametrize("kind", SERVED)
def test_a_server_dies_with_its_test(kind: engines.ServedKind, spawn: Spawner) -> None:
    """A test run that is killed leaves no server; its data go when the next run begins."""
    child = spawn.code(PROGRAM, kind)
    said = child.wait_for_line("^home")
    home = Path(said.split()[1])
    assert home.exists()
    child.signal(signal.SIGKILL)
    child.wait_killed()
    child.close()  # reaped, so that its number is nobody's
    for pid in re.findall(r"\d+", said.partition("pids")[2]):
        eventually(lambda: not lives(int(pid)), describe="the server is dead")  # noqa: B023
    private_servers.delete_leftovers()
    assert not home.exists()


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
@pytest.mark.parametrize("kind", SERVED)
def test_missing_programs_skip_at_home_and_fail_in_ci(
    kind: engines.ServedKind, ci: str, outcome: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the servers that tests share."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(private_servers, "_search_paths", lambda _: [str(tmp_path)])
    with pytest.raises(outcome, match=f"{servers.MISSING} {kind} for private use"), private_server(kind, tmp_path):
        pass
