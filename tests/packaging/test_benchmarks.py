"""The benchmark of ORMs runs, here with a handful of rows, and what it says is a table."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import servers
from bench.leftovers import unique_name
from bench.processes import child_environment

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    """What the benchmark prints on SQLite. Fails with its output."""
    command = [sys.executable, "benchmarks/orm.py", "--databases", "sqlite", "--scale", "0.001", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=child_environment({}), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_crosstie_does_every_row_of_the_benchmark() -> None:
    """Beside SQLAlchemy's ORM, with a ratio in each row, nothing left out, and the versions."""
    output = run("--rounds", "2", "--peers", "crosstie")
    assert "left out" not in output
    table = [line for line in output.splitlines() if line.startswith("|")]
    assert re.search(r"SQLAlchemy ORM \d\S* \| crosstie \d", table[0])
    assert len(table) == 2 + 7
    for line in table[2:]:
        assert re.fullmatch(r"\| [^|]+ \| \d+(\.\d)? \(1\.00\) \| \d+(\.\d)? \(\d+\.\d\d\) \|", line), line


def test_a_peer_that_is_not_installed_is_said_to_be_left_out() -> None:
    """The others are measured all the same."""
    if importlib.util.find_spec("tortoise") is not None:
        pytest.skip("Tortoise is installed here")
    output = run("--rounds", "1", "--peers", "tortoise,crosstie")
    assert "left out: tortoise (No module named 'tortoise')" in output
    assert re.search(r"\| SQLAlchemy ORM \S+ \| crosstie \S+ \|", output)


def test_the_benchmark_of_the_outbox_says_what_an_event_costs_and_how_fast_it_is() -> None:
    """With a handful of events; one line for each way, with its ratio to the baseline."""
    environment = child_environment(
        {
            "CROSSTIE_BENCH_POSTGRESQL_URL": servers.require("postgresql"),
            "CROSSTIE_BENCH_MARIADB_URL": servers.require("mariadb"),
            "CROSSTIE_BENCH_REDIS_URL": servers.require("redis"),
            "CROSSTIE_BENCH_DATABASE": unique_name(),
        }
    )
    options = ("--parts", "throughput,cost", "--scale", "0.01", "--rounds", "1", "--carriers", "crosstie")
    command = [sys.executable, "benchmarks/outbox.py", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out" not in done.stdout
    assert re.search(r"^ +1\.00 +\d+ /s  one Celery task per event over Redis$", done.stdout, re.MULTILINE)
    assert len(re.findall(r"^ +\d+\.\d\d +\d+ /s  crosstie, a subscriber of", done.stdout, re.MULTILINE)) == 2
    assert len(re.findall(r"^ *[+-]\d+\.\d% .* row\(s\) and \d+ event\(s\) on \w+$", done.stdout, re.MULTILINE)) == 6


def test_the_benchmark_of_audits_finds_the_planted_orphans_and_says_what_that_costs() -> None:
    """With a few thousand children; one line for each way, with its ratio, its memory and what was sent."""
    environment = child_environment(
        {
            "CROSSTIE_BENCH_POSTGRESQL_URL": servers.require("postgresql"),
            "CROSSTIE_BENCH_MARIADB_URL": servers.require("mariadb"),
            "CROSSTIE_BENCH_DATABASE": unique_name(),
        }
    )
    options = ("--sizes", "5000", "--rounds", "1", "--cases", "integer", "--ways", "crosstie")
    command = [sys.executable, "benchmarks/audit.py", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out" not in done.stdout
    assert "5,000 children, 2 orphaned keys" in done.stdout
    assert re.search(r"^ +\d+\.\d\d +\d+ MB  crosstie +\d+\.\d bytes per key$", done.stdout, re.MULTILINE)
