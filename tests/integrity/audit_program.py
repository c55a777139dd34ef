"""Run as a child process by the crash tests: an audit of the blog, five keys to a page, with a fault point armed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from crosstie.orm import ConnectionManager
from crosstie.workers.audit import run_audit
from integrity.blog import define_blog

if __name__ == "__main__":
    ConnectionManager.configure()
    define_blog()
    run_audit(chunk_size=5)
    sys.stdout.write("finished\n")
