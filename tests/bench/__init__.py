"""The test bench: real databases, a proxy that loses what passes, processes that are really killed.

**Fixtures** (tests/conftest.py); databases are as if they were new, empty, and the test's own:

- `database` (sqlite, postgresql, mariadb) -> `TestDatabase`
- `pair` (six ordered pairs of different kinds, sqlite-sqlite) -> `Pair(first, second)`
- `crash_pair` (sqlite-sqlite, postgresql-mariadb, mariadb-postgresql) -> `Pair`
- `trio` (the three kinds, each first in turn) -> `Trio(first, second, third)`
- `configured_database`, `configured` (of `pair`), `configured_crash_pair`, `configured_trio`: the same objects, with
  crosstie configured for them as `default`, `secondary`, `tertiary`, and its tables created
- `furnished`, with a fixture of your own that configures them: its tables are there from the start, which is faster
- `proxy_to(database) -> Proxy`; then configure with `database.proxied(proxy).config`
- `spawn` -> `Spawner`: child processes and workers, killed with the test, their output shown where it fails
- `redis_url`, `rabbitmq_url`: shared servers, so use names of your own in them
- always: a test fails that leaves a transaction or a saga open in its thread; pools are closed after each test

In continuous integration the pairs take turns (bench/turns.py); `CROSSTIE_TEST_PAIRS=all` runs all of them.
Servers' databases are made like new for the next test where that cannot be noticed, else dropped (bench/recycling.py).
A missing server skips the tests that need it, with a loud summary; with `CI=true` it fails them.

**bench.databases** (placeholders are `%s` on every kind; each call is a raw connection in autocommit)

- `TestDatabase`: `.kind`, `.name`, `.config`, `.url`; `.execute(sql, params=()) -> int`, `.execute_many(sql, rows)`,
  `.rows(sql, params=()) -> list[tuple]`, `.scalar(sql, params=())`, `.connect()` (context manager), `.proxied(proxy)`,
  `.end_sessions()` (the server ends every other connection)
- `Solo`, `Pair`, `Trio`: `.databases`, `.by_name`, `.configuration` (for `configure`), `.environment` (for a child)
- `fresh_database(kind, folder, furnished=False)`: context manager, for tests that need other combinations
- `bench.guard.configured_databases(Solo | Pair | Trio, tables=True)`: context manager

**bench.private_servers**: `with private_server("postgresql" | "mariadb", folder, settings={...}) as server`: one of the
test's own. `.config`, `.port`, `.database() -> TestDatabase`; `.kill()` (SIGKILL of all its processes), `.start()`
(again: same data, same port), `.stop()`, `.restart()`; `.home`, `.pids`, `.output`. It takes one to three seconds.

**bench.proxy.Proxy**: `.port`, `.connections`, `.cut()`, `.deaf("both" | "to_server" | "to_client")`, `.heal()`,
`.cut_after(pattern, direction="to_server", moment="answered")`, `.deaf_after(..., deafens="both")` -> `Trigger` with
`.wait(within_s)` and the event `.fired`. Moments: `withheld` (a COMMIT is lost), `forwarded`, `answered` (it has been
executed, its acknowledgement is lost).

**bench.processes** (`environment` is added to one without this process's `CROSSTIE_*`; a child is forked with the
libraries loaded, not with crosstie: bench/fork_server.py)

- `spawn.code(text, *args, environment=)`, `spawn.python(*args, environment=)` -> `Child`: `.pid`, `.output`,
  `.exit_code`, `.wait_for_line(regex, within_s=)`, `.wait(within_s=) -> int`, `.wait_ok() -> output`,
  `.wait_killed() -> output`, `.signal(number)`, `.kill()` (SIGKILL of the whole group)
- `spawn.worker(arguments=Worker.CELERY, environment=, ready=regex)` -> `Worker`, ready: also `.stop()` (SIGTERM)

**bench.faults**: `crash_env(name, nth=1)`, `hang_env(name, nth=1)` (then `wait_for_line(HANGING)`) for children;
`with crash_at(name, nth=1):` raises FaultInjected in this process, and fails where the place was not reached.

**bench.waiting**: `eventually(predicate, within_s=60, describe="") -> value`; for what gives no signal.
"""
