"""What the labeling service can be told."""

from __future__ import annotations

from pydantic import Field, field_validator

from andon.rpc.config import Port, ServerConfig
from services.labeling.database import parse_url


class LabelingConfig(ServerConfig):
    """Flags, ANDON_LABELING_* variables or a file; see ``andon.rpc.config``."""

    port: Port = 50054
    """gRPC port; 0 takes a free one and says which in the ready line."""
    metrics_port: Port = 9104
    """Prometheus port; 0 takes a free one."""
    database: str = "sqlite:///andon-home/labeling.sqlite3"
    """SQLAlchemy URL. A new SQLite file and its folder are made."""
    database_lock_wait_s: float = Field(default=5.0, gt=0)
    """How long a write waits for another process before the call answers UNAVAILABLE."""
    database_readers: int = Field(default=2, ge=1, le=64)
    """Threads that read from the database."""
    max_queued_calls: int = Field(default=500, ge=1)
    """Database calls that may wait or run; further ones answer RESOURCE_EXHAUSTED."""
    default_lease_s: float = Field(default=1800.0, gt=0)
    """How long a task is a labeler's who did not say how long they need."""
    max_lease_s: float = Field(default=7 * 86400.0, gt=0)
    """The longest lease."""
    max_text_chars: int = Field(default=200_000, ge=1)
    """The longest document or candidate."""
    cord_keepalive_s: float = Field(default=1.0, gt=0)
    """A watcher of the cord hears the state at least this often."""
    export_page_comparisons: int = Field(default=500, ge=1)
    """Comparisons read from the database at a time."""
    export_poll_s: float = Field(default=1.0, gt=0)
    """How often an export that follows looks for answers that another process recorded."""
    seed: str | None = None
    """Fixes the order of tasks and candidates of a new database; drawn at random when absent."""

    @field_validator("database")
    @classmethod
    def _check_database(cls, url: str) -> str:
        parse_url(url)
        return url
