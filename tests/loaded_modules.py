"""Which modules a command has imported when it ends: what its start is slow or fast by."""

import subprocess
import sys

# Libraries that take long to import; talking to a service needs none of them.
HEAVY = frozenset(
    {"torch", "transformers", "datasets", "matplotlib", "scipy"}
    | {"numpy", "pandas", "sqlalchemy", "kubernetes"}
)
# For servers, and for encrypted connections.
FOR_SERVERS = frozenset({"pydantic_settings", "prometheus_client", "structlog", "cryptography", "starlette"})

_PROGRAM = """
import atexit, sys
atexit.register(lambda: sys.stderr.write(" ".join(sys.modules)))
from andon.cli.main import main
main()
"""


def modules_of_command(*arguments: str, exit_code: int = 0) -> set[str]:
    """Run ``andon`` with these arguments in a process of its own; it must end with ``exit_code``."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == exit_code, done.stderr
    modules = set(done.stderr.rpartition("\n")[2].split(" "))
    assert "andon.cli.main" in modules
    return modules
