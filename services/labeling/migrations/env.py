"""Runs the migrations on the connection that ``upgrade`` was given. Alembic loads this file."""

from __future__ import annotations

from alembic import context

from services.labeling.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the caller's transaction holds all of it
)
context.run_migrations()
