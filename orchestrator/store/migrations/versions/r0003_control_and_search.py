"""Control and search: what the commands, several objectives, replicas and promotion need.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


_NEW_TRANSITIONS = (("experiments", "queued", "paused"),)
"""(table, state, state that may come next) that were not legal before."""


_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    _add_search()
    _let_ended_experiments_be_extended()
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
    op.add_column("experiments", sa.Column("last_turn", sa.BigInteger(), nullable=False, server_default="0"))
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


def _add_search() -> None:
    """Several objectives, vetoes, versions of a spec, warm starts and analyses."""
    op.add_column("trials", sa.Column("further_values", _JSON, nullable=True))
    op.add_column("trials", sa.Column("veto", sa.Text(), nullable=True))
    op.add_column("trials", sa.Column("spec_version", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("experiments", sa.Column("spec_version", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "spec_versions",
        sa.Column("experiment_id", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("since_sequence", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        _experiment_key("spec_versions"),
        sa.PrimaryKeyConstraint("experiment_id", "version", name=op.f("pk_spec_versions")),
    )
    op.create_table(
        "warm_starts",
        sa.Column("experiment_id", sa.String(length=32), nullable=False),
        sa.Column("trials", _JSON, nullable=False),
        sa.Column("skipped", _JSON, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        _experiment_key("warm_starts"),
        sa.PrimaryKeyConstraint("experiment_id", name=op.f("pk_warm_starts")),
    )
    op.create_table(
        "analyses",
        sa.Column("experiment_id", sa.String(length=32), nullable=False),
        sa.Column("wanted_ms", sa.BigInteger(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("document", _JSON, nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=True),
        _experiment_key("analyses"),
        sa.PrimaryKeyConstraint("experiment_id", name=op.f("pk_analyses")),
    )


def _experiment_key(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_experiment_id_experiments")
    return sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=name)


def _let_ended_experiments_be_extended() -> None:
    """Spec and document may change, and an ended experiment may be queued again, only with the next spec version."""
    known = (
        "EXISTS (SELECT 1 FROM transitions WHERE entity = 'experiments' AND source = OLD.state AND target = NEW.state)"
    )
    reopened = (
        "(OLD.state IN ('completed', 'failed', 'cancelled') AND NEW.state = 'queued' "
        "AND NEW.spec_version = OLD.spec_version + 1)"
    )
    changed = (
        "NEW.spec {differs} OLD.spec OR NEW.document {differs} OLD.document OR NEW.spec_version <> OLD.spec_version"
    )
    for name, condition, message in (
        ("transition", f"NEW.state <> OLD.state AND NOT {known} AND NOT {reopened}", "transition in experiments"),
        ("frozen", f"({changed}) AND NOT {reopened}", "change of what is fixed in experiments"),
    ):
        if op.get_bind().dialect.name == "postgresql":
            condition = condition.format(differs="IS DISTINCT FROM")
            op.execute(
                f"CREATE OR REPLACE FUNCTION evenload_experiments_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ "
                f"BEGIN IF {condition} THEN "
                f"RAISE EXCEPTION 'evenload: illegal {message}' USING ERRCODE = 'check_violation'; "
                "END IF; RETURN NEW; END $$"
            )
        else:
            condition = condition.format(differs="IS NOT")
            op.execute(f"DROP TRIGGER experiments_{name}")
            op.execute(
                f"CREATE TRIGGER experiments_{name} BEFORE UPDATE ON experiments FOR EACH ROW WHEN {condition} "
                f"BEGIN SELECT RAISE(ABORT, 'evenload: illegal {message}'); END"
            )


def downgrade() -> None:
    raise NotImplementedError("evenload only migrates forward; restore a backup to go back")
