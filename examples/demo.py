"""Two databases stay consistent through a crash.

Runs on two SQLite files and an embedded broker; with CROSSTIE_DEMO_PRIMARY_URL and CROSSTIE_DEMO_SECONDARY_URL
(`postgresql://…`, `mariadb://…`) on databases of yours, which must be empty or the demo's own. Every figure that is
printed is read back from the databases. Exit status 0 if all of them are as they must be.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from crosstie.orm import ConnectionManager, transaction
from crosstie.outbox import sync_routes
from crosstie.outbox.tables import METADATA, create_tables, drop_tables

USERS = 4_000
CUSTOMERS = 2
ORDERS_EACH = 600
OLD_ORDERS = 3_000
KILLED_AT_ORDER = 40
UNDO_AFTER_S = 2
HERE = Path(__file__).parent

console = Console(highlight=False)


def main() -> int:
    """Run the demo; 0 if every figure is right."""
    with tempfile.TemporaryDirectory(prefix="crosstie-demo-") as folder:
        configure(Path(folder))
        try:
            return run(Path(folder))
        finally:
            ConnectionManager.dispose()


def configure(folder: Path) -> None:
    """Tell this process and its children, by their environment, where the databases are."""
    connections = {
        name: os.environ.get(f"CROSSTIE_DEMO_{name.upper()}_URL") or f"sqlite:///{folder / name}.db"
        for name in ("primary", "secondary")
    }
    os.environ |= {
        "CROSSTIE_CONNECTIONS": json.dumps(connections),
        "CROSSTIE_IMPORTS": json.dumps(["demo_shop"]),
        "CROSSTIE_SAGA__EXPIRY_S": str(UNDO_AFTER_S),
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    ConnectionManager.configure()


def run(folder: Path) -> int:
    """Prepare, run customers, kill one, let the worker finish, audit."""
    prepare_databases()
    with start([executable("crosstie"), "worker", "--concurrency", "1"], folder, "worker.log") as worker:
        try:
            wait_for(lambda: "crosstie worker ready" in (folder / "worker.log").read_text(), "the worker starts")
            broker = "your broker" if os.environ.get("CROSSTIE_BROKER_URL") else "an embedded broker in a file"
            say(1, f"a Celery worker runs, with {broker}")
            serve_customers(folder)
            half_done = kill_one_between_two_commits(folder)
            started = time.monotonic()
            wait_for(quiet, "sagas are resolved and events delivered")
            say(None, f"{time.monotonic() - started:.1f} s later the worker has undone the half that was committed")
        finally:
            stop(worker)
    return report(half_done, plant_and_find_an_orphan(folder))


def prepare_databases() -> None:
    """Fresh tables, thousands of users and old orders."""
    from demo_shop import Delivery, Order, User

    models = (User, Order, Delivery)
    for name in ConnectionManager.names():
        database = ConnectionManager.get(name)
        own = {model.__table_name__ for model in models} | set(METADATA.tables)
        with database.mapped_errors(), database.engine.connect() as connection:
            foreign = set(sa.inspect(connection).get_table_names()) - own
        if foreign:
            sys.exit(f"{database}: expected an empty database or the demo's own, found the table {min(foreign)!r}.")
        drop_tables(database)
        create_tables(database)
    for model in models:
        model.drop_table()
        model.create_table()
    with transaction("primary"):
        for number in range(USERS):
            User(name=f"user {number}").save()
    with transaction("secondary"):
        for number in range(OLD_ORDERS):
            Order(user_id=number % USERS + 1, amount_cents=0).save()
    sync_routes()


def serve_customers(folder: Path) -> None:
    """Several processes place orders at the same time, each for users of its own."""
    started = time.monotonic()
    customers = [customer(folder, number * 1000 + 1, number * 1000 + 1000) for number in range(CUSTOMERS)]
    for process in customers:
        if process.wait() != 0:
            sys.exit((folder / "customers.log").read_text())
    sagas = count("primary", "SELECT count(*) FROM crosstie_saga WHERE state = 'committed'")
    rate = sagas / (time.monotonic() - started)
    say(2, f"{CUSTOMERS} processes have run {sagas:,} sagas over both databases, {rate:,.0f} a second")


def kill_one_between_two_commits(folder: Path) -> int:
    """One more customer, killed after the branch has committed and before home has; returns how many orders hang."""
    user = USERS  # nobody else buys for this one
    arming = {"CROSSTIE_FAULTS": f"saga.branch-committed=kill:{KILLED_AT_ORDER}"}
    process = customer(folder, user, user, **arming)
    if process.wait() != -signal.SIGKILL:
        sys.exit(f"expected the process to be killed, but it ended with {process.returncode}")
    ordered = count("secondary", "SELECT sum(amount_cents) FROM demo_orders WHERE user_id = :user", user=user)
    paid = count("primary", "SELECT spent_cents FROM demo_users WHERE id = :user", user=user)
    say(3, "one more process was killed by SIGKILL between its two commits")
    say(None, f"now the secondary database says ordered {ordered:,} ¢, the primary says paid {paid:,} ¢")
    return ordered - paid


def plant_and_find_an_orphan(folder: Path) -> list[dict[str, Any]]:
    """An order of a user that does not exist, written by raw SQL behind everybody's back; then an audit."""
    with ConnectionManager.get("secondary").engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO demo_orders (user_id, amount_cents) VALUES (999999999, 0)"))
    audit = subprocess.run(
        [executable("crosstie"), "audit", "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    if audit.returncode not in {0, 1}:
        sys.exit(audit.stdout + audit.stderr)
    found: list[dict[str, Any]] = json.loads(audit.stdout)["references"]
    orphans = sum(one["orphan_rows"] for one in found)
    say(4, f"`crosstie audit` has found {orphans} order without a user, planted by raw SQL")
    return found


def report(half_done: int, audits: list[dict[str, Any]]) -> int:
    """Print what the databases say now; 0 if all of it is as it must be."""
    orders = count("secondary", "SELECT count(*) FROM demo_orders WHERE amount_cents > 0")
    rows: list[tuple[str, object, object]] = [
        ("users", count("primary", "SELECT count(*) FROM demo_users"), USERS),
        ("sagas committed", count("primary", "SELECT count(*) FROM crosstie_saga WHERE state = 'committed'"), orders),
        (
            "sagas undone after the kill",
            count("secondary", "SELECT count(*) FROM crosstie_saga WHERE state = 'undone'"),
            1,
        ),
        (
            "sagas unfinished",
            sum(
                count(name, "SELECT count(*) FROM crosstie_saga WHERE state IN ('applied', 'aborted')")
                for name in ("primary", "secondary")
            ),
            0,
        ),
        ("the kill left it half done (1 = yes)", int(half_done > 0), 1),
        (
            "cents ordered in one database, paid in the other",
            count("secondary", "SELECT sum(amount_cents) FROM demo_orders"),
            count("primary", "SELECT sum(spent_cents) FROM demo_users"),
        ),
        ("events delivered", count("secondary", "SELECT count(*) FROM demo_deliveries"), orders),
        (
            "events delivered, of different orders",
            count("secondary", "SELECT count(DISTINCT order_id) FROM demo_deliveries"),
            orders,
        ),
        ("orphans planted and found", sum(one["orphan_rows"] for one in audits), 1),
    ]
    table = Table(title="read back from the databases")
    for heading in ("", "found", "must be"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, found, expected in rows:
        table.add_row(name, f"{found:,}", f"{expected:,}", style="" if found == expected else "bold red")
    console.print(table)
    right = all(found == expected for _, found, expected in rows)
    console.print("[green]all as it must be[/]" if right else "[bold red]something is wrong[/]")
    return 0 if right else 1


def say(step: int | None, text: str) -> None:
    """One line of the story."""
    console.print(f"[bold]{step}.[/] {text}" if step else f"   {text}", soft_wrap=True)


def quiet() -> bool:
    """Whether no saga is unfinished and no event undelivered."""
    return not any(
        count(name, "SELECT count(*) FROM crosstie_saga WHERE state IN ('applied', 'aborted')")
        + count(name, "SELECT count(*) FROM crosstie_outbox")
        for name in ("primary", "secondary")
    )


def count(name: str, sql: str, **parameters: object) -> int:
    """One number from a database, on a connection of its own."""
    with ConnectionManager.get(name).autocommit.connect() as connection:
        return int(connection.execute(sa.text(sql), parameters).scalar() or 0)


def wait_for(condition: Callable[[], bool], what: str, within_s: float = 60) -> None:
    """Poll with a deadline."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not within {within_s:.0f} s")
        time.sleep(0.05)


def executable(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).parent / name)


def customer(folder: Path, first: int, last: int, **environment: str) -> subprocess.Popen[bytes]:
    """A process that places orders for these users."""
    arguments = [sys.executable, str(HERE / "demo_shop.py"), str(first), str(last), str(ORDERS_EACH)]
    return start(arguments, folder, "customers.log", **environment)


def start(arguments: list[str], folder: Path, log: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start a child in the demo's folder, its output in a log there."""
    with (folder / log).open("ab") as output:
        return subprocess.Popen(
            arguments, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a child politely, and by force if it does not listen."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
