"""Control and search: what the commands, several objectives, replicas and promotion need.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


_NEW_TRANSITIONS = (("experiments", "queued", "paused"),)
"""(table, state, state that may come next) that were not legal before."""


def upgrade() -> None:
    _points_and_parents()
    _control()
    _transitions()


def _points_and_parents() -> None:
    """Seed replicas of a point, and trials that go on from another one of their experiment."""
    op.add_column("trials", sa.Column("point", sa.Integer(), nullable=True))
    op.add_column("trials", sa.Column("replica", sa.Integer(), nullable=True))
    op.add_column("trials", sa.Column("parent_trial_id", sa.String(length=32), nullable=True))
    op.add_column("trials", sa.Column("parent_checkpoint_id", sa.String(length=32), nullable=True))
    op.create_index(op.f("ix_trials_parent_trial_id"), "trials", ["parent_trial_id"], unique=False)


def _control() -> None:
    """Owners, priorities, wishes about single trials."""
    op.add_column("experiments", sa.Column("owner", sa.String(length=80), nullable=False, server_default="local"))
    op.add_column("experiments", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("experiments", sa.Column("wants_run", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("experiments", sa.Column("stop_within_s", sa.Float(precision=53), nullable=True))
    op.add_column("trials", sa.Column("retry_of", sa.String(length=32), nullable=True))
    op.create_index("uq_trials_retry_of", "trials", ["retry_of"], unique=True)
    op.add_column("commands", sa.Column("trial_id", sa.String(length=32), nullable=True))
    op.add_column("commands", sa.Column("idempotency_key", sa.String(length=200), nullable=True))
    op.add_column("commands", sa.Column("idempotency_fingerprint", sa.String(length=64), nullable=True))
    op.create_index("uq_commands_idempotency_key", "commands", ["idempotency_key"], unique=True)


def _transitions() -> None:
    table = sa.table("transitions", sa.column("entity"), sa.column("source"), sa.column("target"))
    op.bulk_insert(
        table,
        [{"entity": entity, "source": source, "target": target} for entity, source, target in _NEW_TRANSITIONS],
    )


def downgrade() -> None:
    raise NotImplementedError("evenload only migrates forward; restore a backup to go back")
