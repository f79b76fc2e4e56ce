"""Forks: which experiment goes on from which checkpoint; and what a checkpoint's model was worth when it was written.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("objective", sa.Float(precision=53), nullable=True))
    op.create_table(
        "forks",
        sa.Column("experiment_id", sa.String(length=32), nullable=False),
        sa.Column("trial_id", sa.String(length=32), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("checkpoint_id", sa.String(length=32), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("changes", _JSON, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_forks_checkpoint_id_checkpoints")),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=op.f("fk_forks_experiment_id_experiments")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_forks_run_id_runs")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_forks_trial_id_trials")),
        sa.PrimaryKeyConstraint("experiment_id", name=op.f("pk_forks")),
    )
    op.create_index(op.f("ix_forks_trial_id"), "forks", ["trial_id"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("evenload only migrates forward; restore a backup to go back")
