"""How a database comes to the present schema, from nothing or from an earlier version.

:func:`upgrade` is called by :class:`services.labeling.database.Database` when it opens. Each step is a module
in ``versions`` and runs in one transaction with all the others: a database is migrated whole or not at all.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from andon.errors import FailedPreconditionError

FIRST_REVISION = "0001"  # what databases have that were made before there were migrations


def upgrade(connection: sa.Connection) -> tuple[str | None, str]:
    """Bring the database to the newest revision inside the caller's transaction; returns from and to.

    Raises FailedPreconditionError SCHEMA_VERSION for a database that a newer program has made.
    """
    config = alembic_config(connection)
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    if newest is None:
        raise RuntimeError("there are no migrations")
    found = current_revision(connection)
    if found is None and sa.inspect(connection).has_table("settings"):
        command.stamp(config, FIRST_REVISION)
        found = FIRST_REVISION
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise FailedPreconditionError(
            f"the database has schema version {found}, this program knows versions up to {newest}",
            reason="SCHEMA_VERSION",
        )
    if found != newest:
        command.upgrade(config, "head")
    return found, newest


def current_revision(connection: sa.Connection) -> str | None:
    """The revision that the database is at, None for an empty one or one from before migrations."""
    return MigrationContext.configure(connection).get_current_revision()


def alembic_config(connection: sa.Connection) -> Config:
    """Alembic's own configuration, which reaches ``env.py`` with the connection in it."""
    config = Config()
    config.set_main_option("script_location", "services.labeling:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
