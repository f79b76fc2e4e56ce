"""Alembic's entry: runs migrations on the connection that `orchestrator.store.migrate` opened, in its transaction."""

from alembic import context

from orchestrator.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite's DDL is transactional too, once the transaction is begun by us: a killed migration leaves nothing behind.
    transactional_ddl=True,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
