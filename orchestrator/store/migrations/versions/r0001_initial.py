"""The tables of the control plane, and the rules that the database itself keeps.

Triggers refuse illegal moves between states, epochs that go back, changes to a submitted spec, to a decided rung and to
the history: no bug of ours can write what the tables must never hold.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_TRANSITIONS = {
    "experiments": {
        "queued": "running cancelling cancelled failed",
        "running": "completed failed pausing cancelling",
        "pausing": "paused cancelling completed failed",
        "paused": "queued cancelling cancelled",
        "cancelling": "cancelled",
    },
    "trials": {
        "queued": "running infeasible cancelled",
        "running": "completed pruned failed infeasible cancelled retrying",
        "retrying": "running pruned failed cancelled",
    },
    "runs": {
        "starting": "running failed lost cancelled",
        "running": "completed pruned failed lost cancelled",
    },
}
"""Table -> state -> the states that may come next: states.TRANSITIONS as of this revision (a test compares)."""


def upgrade() -> None:
    _create_tables()
    _fill_transitions()
    if op.get_bind().dialect.name == "postgresql":
        _create_postgresql_triggers()
    else:
        _create_sqlite_triggers()


def downgrade() -> None:
    raise NotImplementedError("evenload only migrates forward; restore a backup to go back")


def _state_in(*states: str) -> str:
    return "state IN (" + ", ".join(f"'{state}'" for state in states) + ")"


def _create_tables() -> None:
    op.create_table(
        "transitions",
        sa.Column("entity", sa.String(length=16), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("target", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("entity", "source", "target", name=op.f("pk_transitions")),
    )
    op.create_table(
        "experiments",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("document", _JSON, nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("warnings", _JSON, nullable=False),
        sa.Column("idempotency_key", sa.String(length=200), nullable=True),
        sa.Column("idempotency_fingerprint", sa.String(length=64), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=200), nullable=True),
        sa.Column("lease_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("lease_boot_id", sa.String(length=64), nullable=True),
        sa.Column("mlflow_experiment_id", sa.String(length=64), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("finished_at_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            _state_in("queued", "running", "pausing", "paused", "cancelling", "completed", "failed", "cancelled"),
            name=op.f("ck_experiments_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiments")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_experiments_idempotency_key")),
    )
    op.create_index(op.f("ix_experiments_created_at_ms"), "experiments", ["created_at_ms"], unique=False)
    op.create_index(op.f("ix_experiments_state"), "experiments", ["state"], unique=False)
    op.create_table(
        "services",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("url", sa.String(length=400), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("detail", _JSON, nullable=False),
        sa.Column("heartbeat_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_services")),
    )
    op.create_table(
        "commands",
        sa.Column("id", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("experiment_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("payload", _JSON, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("applied_at_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(_state_in("pending", "applied", "rejected"), name=op.f("ck_commands_state")),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=op.f("fk_commands_experiment_id_experiments")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commands")),
    )
    op.create_index(op.f("ix_commands_experiment_id"), "commands", ["experiment_id"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("experiment_id", sa.String(length=32), nullable=True),
        sa.Column("trial_id", sa.String(length=32), nullable=True),
        sa.Column("run_id", sa.String(length=32), nullable=True),
        sa.Column("data", _JSON, nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=op.f("fk_events_experiment_id_experiments")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_experiment_id"), "events", ["experiment_id"], unique=False)
    op.create_table(
        "trials",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("experiment_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("label", sa.String(length=80), nullable=True),
        sa.Column("batch", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("cause", sa.String(length=32), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("params", _JSON, nullable=False),
        sa.Column("config", _JSON, nullable=True),
        sa.Column("config_fingerprint", sa.String(length=64), nullable=True),
        sa.Column("asked_sequence", sa.BigInteger(), nullable=False),
        sa.Column("finished_sequence", sa.BigInteger(), nullable=True),
        sa.Column("objective", sa.Float(precision=53), nullable=True),
        sa.Column("objective_tokens", sa.BigInteger(), nullable=True),
        sa.Column("summary", _JSON, nullable=True),
        sa.Column("num_retries", sa.Integer(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("started_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("finished_at_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            f"({_state_in('completed', 'pruned', 'failed', 'infeasible', 'cancelled')}) = (finished_at_ms IS NOT NULL)",
            name=op.f("ck_trials_finished"),
        ),
        sa.CheckConstraint(
            _state_in("queued", "running", "retrying", "completed", "pruned", "failed", "infeasible", "cancelled"),
            name=op.f("ck_trials_state"),
        ),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=op.f("fk_trials_experiment_id_experiments")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trials")),
    )
    op.create_index("uq_trials_experiment_id_number", "trials", ["experiment_id", "number"], unique=True)
    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("trial_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("cause", sa.String(length=32), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("folder", sa.String(length=400), nullable=False),
        sa.Column("resumed_from_step", sa.BigInteger(), nullable=True),
        sa.Column("stop_at_tokens", sa.BigInteger(), nullable=True),
        sa.Column("progress", _JSON, nullable=True),
        sa.Column("environment", _JSON, nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("started_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("finished_at_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            _state_in("starting", "running", "completed", "pruned", "failed", "lost", "cancelled"),
            name=op.f("ck_runs_state"),
        ),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_runs_trial_id_trials")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(
        "uq_runs_one_live_per_trial",
        "runs",
        ["trial_id"],
        unique=True,
        sqlite_where=sa.text("state IN ('starting', 'running')"),
        postgresql_where=sa.text("state IN ('starting', 'running')"),
    )
    op.create_index("uq_runs_trial_id_number", "runs", ["trial_id", "number"], unique=True)
    op.create_table(
        "tracking",
        sa.Column("trial_id", sa.String(length=32), nullable=False),
        sa.Column("mlflow_run_id", sa.String(length=64), nullable=True),
        sa.Column("positions", _JSON, nullable=False),
        sa.Column("finished", sa.Boolean(), nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_tracking_trial_id_trials")),
        sa.PrimaryKeyConstraint("trial_id", name=op.f("pk_tracking")),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("trial_id", sa.String(length=32), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("folder", sa.String(length=400), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(_state_in("committed", "deleting"), name=op.f("ck_checkpoints_state")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_checkpoints_run_id_runs")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_checkpoints_trial_id_trials")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoints")),
    )
    op.create_index(op.f("ix_checkpoints_trial_id"), "checkpoints", ["trial_id"], unique=False)
    op.create_index("uq_checkpoints_run_id_step", "checkpoints", ["run_id", "step"], unique=True)
    op.create_table(
        "rungs",
        sa.Column("trial_id", sa.String(length=32), nullable=False),
        sa.Column("rung", sa.Integer(), nullable=False),
        sa.Column("experiment_id", sa.String(length=32), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("decision", sa.String(length=16), nullable=True),
        sa.Column("explanation", sa.Text(), nullable=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=op.f("fk_rungs_experiment_id_experiments")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_rungs_run_id_runs")),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name=op.f("fk_rungs_trial_id_trials")),
        sa.PrimaryKeyConstraint("trial_id", "rung", name=op.f("pk_rungs")),
    )
    op.create_index(op.f("ix_rungs_experiment_id"), "rungs", ["experiment_id"], unique=False)


def _fill_transitions() -> None:
    table = sa.table("transitions", sa.column("entity"), sa.column("source"), sa.column("target"))
    op.bulk_insert(
        table,
        [
            {"entity": entity, "source": source, "target": target}
            for entity, moves in _TRANSITIONS.items()
            for source, targets in moves.items()
            for target in targets.split()
        ],
    )


_FROZEN = {
    "experiments": "NEW.spec {differs} OLD.spec OR NEW.document {differs} OLD.document",
    "rungs": "OLD.decision IS NOT NULL OR NEW.value {differs} OLD.value OR NEW.sequence <> OLD.sequence "
    "OR NEW.tokens <> OLD.tokens OR NEW.rung <> OLD.rung OR NEW.trial_id <> OLD.trial_id",
}
"""Table -> when an UPDATE of it would change what is fixed."""


def _create_sqlite_triggers() -> None:
    def refuse(name: str, action: str, table: str, condition: str, message: str) -> None:
        op.execute(
            f"CREATE TRIGGER {table}_{name} BEFORE {action} ON {table} FOR EACH ROW WHEN {condition} "
            f"BEGIN SELECT RAISE(ABORT, 'evenload: illegal {message}'); END"
        )

    for table in _TRANSITIONS:
        known = (
            f"EXISTS (SELECT 1 FROM transitions WHERE entity = '{table}' AND source = OLD.state AND target = NEW.state)"
        )
        refuse("transition", "UPDATE", table, f"NEW.state <> OLD.state AND NOT {known}", f"transition in {table}")
        refuse("epoch", "UPDATE", table, "NEW.epoch < OLD.epoch", f"step back of an epoch in {table}")
    for table, condition in _FROZEN.items():
        refuse("frozen", "UPDATE", table, condition.format(differs="IS NOT"), f"change of what is fixed in {table}")
    refuse("update", "UPDATE", "events", "1", "change of the history")
    refuse("delete", "DELETE", "events", "1", "change of the history")


def _create_postgresql_triggers() -> None:
    def refuse(name: str, action: str, table: str, condition: str, message: str) -> None:
        op.execute(
            f"CREATE FUNCTION evenload_{table}_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF {condition} THEN "
            f"RAISE EXCEPTION 'evenload: illegal {message}' USING ERRCODE = 'check_violation'; "
            "END IF; RETURN NEW; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_{name} BEFORE {action} ON {table} FOR EACH ROW "
            f"EXECUTE FUNCTION evenload_{table}_{name}()"
        )

    for table in _TRANSITIONS:
        known = (
            f"EXISTS (SELECT 1 FROM transitions WHERE entity = '{table}' AND source = OLD.state AND target = NEW.state)"
        )
        refuse("transition", "UPDATE", table, f"NEW.state <> OLD.state AND NOT {known}", f"transition in {table}")
        refuse("epoch", "UPDATE", table, "NEW.epoch < OLD.epoch", f"step back of an epoch in {table}")
    for table, condition in _FROZEN.items():
        differs = condition.format(differs="IS DISTINCT FROM")
        refuse("frozen", "UPDATE", table, differs, f"change of what is fixed in {table}")
    refuse("history", "UPDATE OR DELETE", "events", "true", "change of the history")
