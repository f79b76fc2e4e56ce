"""The tables. Every fact of the control plane lives here; nothing else is the truth about an experiment.

Times are UTC milliseconds since 1970 (`*_ms`): both databases order and compare them exactly. States are checked by the
database too (migrations add the transition triggers), so that no bug of ours can write an illegal one.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from orchestrator.states import ExperimentState, RunState, TrialState

# None is SQL's NULL, not the JSON value null.
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
# SQLite only autoincrements the exact type INTEGER.
Sequence = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _one_of(states: type[ExperimentState] | type[TrialState] | type[RunState]) -> str:
    return "state IN (" + ", ".join(f"'{state.value}'" for state in states) + ")"


class ExperimentRow(Base):
    __tablename__ = "experiments"
    __table_args__ = (CheckConstraint(_one_of(ExperimentState), name="state"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str] = mapped_column(Text, default="")
    since_ms: Mapped[int] = mapped_column(BigInteger)
    document: Mapped[dict[str, Any]] = mapped_column(Json)
    """What the user sent."""
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    """The normalised ExperimentSpec with all defaults."""
    spec_version: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """How often it was extended; spec and document change only together with it."""
    warnings: Mapped[list[str]] = mapped_column(Json)
    idempotency_key: Mapped[str | None] = mapped_column(String(200), unique=True)
    idempotency_fingerprint: Mapped[str | None] = mapped_column(String(64))
    sequence: Mapped[int] = mapped_column(BigInteger, default=0)
    """Counts what happened in this experiment: each proposal, rung arrival and end takes the next number."""
    epoch: Mapped[int] = mapped_column(Integer, default=0)
    """Fencing: each driver gets the next epoch, and only writes of the current epoch are accepted."""
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    """Host, boot and pid of the driver."""
    lease_until_ms: Mapped[int | None] = mapped_column(BigInteger)
    lease_boot_id: Mapped[str | None] = mapped_column(String(64))
    owner: Mapped[str] = mapped_column(String(80), default="local", server_default="local")
    """Whose token submitted it; `local` for the installation's own. Places are shared fairly among owners."""
    priority: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Higher ones get free places first."""
    last_turn: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Counts up over all experiments with every run that starts; see `orchestrator.allocation`."""
    wants_run: Mapped[bool] = mapped_column(default=True, server_default=true())
    """Its driver would start a run if it got a place. Counts while the driver's lease lives."""
    stop_within_s: Mapped[float | None] = mapped_column(Float(53))
    """While it is being paused or cancelled: seconds for its runs to write a checkpoint before they are killed."""
    mlflow_experiment_id: Mapped[str | None] = mapped_column(String(64))
    created_at_ms: Mapped[int] = mapped_column(BigInteger, index=True)
    finished_at_ms: Mapped[int | None] = mapped_column(BigInteger)


class TrialRow(Base):
    __tablename__ = "trials"
    __table_args__ = (
        Index("uq_trials_experiment_id_number", "experiment_id", "number", unique=True),
        # A failed trial is tried again once; what comes of that may be tried again in its turn.
        Index("uq_trials_retry_of", "retry_of", unique=True),
        CheckConstraint(_one_of(TrialState), name="state"),
        CheckConstraint(
            "(state IN ('completed', 'pruned', 'failed', 'infeasible', 'cancelled')) = (finished_at_ms IS NOT NULL)",
            name="finished",
        ),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"))
    number: Mapped[int] = mapped_column(Integer)
    """0-based order of proposal; baselines come first."""
    kind: Mapped[str] = mapped_column(String(16))
    """`search`, `baseline` or `added`."""
    label: Mapped[str | None] = mapped_column(String(80))
    """A baseline's name, or that of a point added by hand."""
    retry_of: Mapped[str | None] = mapped_column(String(32))
    """The failed trial that this one repeats, at a user's wish."""
    batch: Mapped[int | None] = mapped_column(Integer)
    """Batch of a synchronous experiment."""
    point: Mapped[int | None] = mapped_column(Integer)
    """Where points are tried with several seeds: 0-based order of the point, baselines first; else null."""
    replica: Mapped[int | None] = mapped_column(Integer)
    """Which of its point's seeds it has, from 0. Null with `point`."""
    parent_trial_id: Mapped[str | None] = mapped_column(String(32), index=True)
    """The trial of this experiment that it goes on from (population-based training)."""
    parent_checkpoint_id: Mapped[str | None] = mapped_column(String(32))
    """The parent's checkpoint that it begins with, and pins."""
    state: Mapped[str] = mapped_column(String(16))
    cause: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str] = mapped_column(Text, default="")
    since_ms: Mapped[int] = mapped_column(BigInteger)
    epoch: Mapped[int] = mapped_column(Integer)
    params: Mapped[dict[str, Any]] = mapped_column(Json)
    """Parameter path -> proposed plain value (an options domain: the option's name)."""
    config: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """The complete TrainConfig; null if the point is infeasible as a configuration."""
    config_fingerprint: Mapped[str | None] = mapped_column(String(64))
    asked_sequence: Mapped[int] = mapped_column(BigInteger)
    """`experiments.sequence` when it was proposed: the proposal saw exactly the rows before it."""
    finished_sequence: Mapped[int | None] = mapped_column(BigInteger)
    objective: Mapped[float | None] = mapped_column(Float(53))
    """The objective's value of a completed trial, or that at its last rung of a pruned one; null if there is none."""
    objective_tokens: Mapped[int | None] = mapped_column(BigInteger)
    """Training tokens at which `objective` was measured."""
    summary: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """RunSummary of the finished trial; of a pruned one what its last evaluation gave."""
    further_values: Mapped[list[float | None] | None] = mapped_column(Json)
    """Of a completed trial: a value for each of the spec's further objectives; null where the run has none."""
    veto: Mapped[str | None] = mapped_column(Text)
    """The limit with a veto that the completed trial is beyond, in words: it cannot win."""
    spec_version: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    """Which version of the spec it was proposed under."""
    num_retries: Mapped[int] = mapped_column(Integer, default=0)
    created_at_ms: Mapped[int] = mapped_column(BigInteger)
    started_at_ms: Mapped[int | None] = mapped_column(BigInteger)
    finished_at_ms: Mapped[int | None] = mapped_column(BigInteger)


class RunRow(Base):
    __tablename__ = "runs"
    __table_args__ = (
        Index("uq_runs_trial_id_number", "trial_id", "number", unique=True),
        # At most one live run per trial, enforced by the database.
        Index(
            "uq_runs_one_live_per_trial",
            "trial_id",
            unique=True,
            sqlite_where=text("state IN ('starting', 'running')"),
            postgresql_where=text("state IN ('starting', 'running')"),
        ),
        CheckConstraint(_one_of(RunState), name="state"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"))
    number: Mapped[int] = mapped_column(Integer)
    """0-based order within the trial."""
    state: Mapped[str] = mapped_column(String(16))
    cause: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str] = mapped_column(Text, default="")
    since_ms: Mapped[int] = mapped_column(BigInteger)
    epoch: Mapped[int] = mapped_column(Integer)
    folder: Mapped[str] = mapped_column(String(400))
    """Relative to the home folder."""
    resumed_from_step: Mapped[int | None] = mapped_column(BigInteger)
    stop_at_tokens: Mapped[int | None] = mapped_column(BigInteger)
    """Where this segment of a synchronous experiment was asked to end."""
    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """The run's last progress.json."""
    environment: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at_ms: Mapped[int] = mapped_column(BigInteger)
    started_at_ms: Mapped[int | None] = mapped_column(BigInteger)
    finished_at_ms: Mapped[int | None] = mapped_column(BigInteger)


class RungRow(Base):
    """A trial's result at a rung, in order of arrival, with the decision taken on it. Written once, never changed
    (but for the decision of a synchronous batch, which is filled in when the batch is complete)."""

    __tablename__ = "rungs"

    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"), primary_key=True)
    rung: Mapped[int] = mapped_column(Integer, primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), index=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    tokens: Mapped[int] = mapped_column(BigInteger)
    value: Mapped[float | None] = mapped_column(Float(53))
    """The objective; null if it was not finite."""
    sequence: Mapped[int] = mapped_column(BigInteger)
    decision: Mapped[str | None] = mapped_column(String(16))
    """`continue` or `stop`; null while a synchronous batch is incomplete."""
    explanation: Mapped[str | None] = mapped_column(Text)
    """Why, in one line: rank, cut-off, how many had arrived."""
    at_ms: Mapped[int] = mapped_column(BigInteger)


class CheckpointRow(Base):
    __tablename__ = "checkpoints"
    __table_args__ = (
        Index("uq_checkpoints_run_id_step", "run_id", "step", unique=True),
        CheckConstraint("state IN ('committed', 'deleting')", name="state"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"), index=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    step: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)
    folder: Mapped[str] = mapped_column(String(400))
    """Relative to the home folder."""
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    at_ms: Mapped[int] = mapped_column(BigInteger)
    objective: Mapped[float | None] = mapped_column(Float(53))
    """The objective at this step; null if the run was not evaluated there, or it was not finite."""


class ForkRow(Base):
    """An experiment that goes on from a checkpoint of another one's run. It pins the checkpoint."""

    __tablename__ = "forks"

    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), primary_key=True)
    """The fork."""
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"), index=True)
    """The trial it goes on from."""
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    """The run that wrote the checkpoint."""
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    step: Mapped[int] = mapped_column(BigInteger)
    changes: Mapped[dict[str, Any]] = mapped_column(Json)
    """Dotted path -> value that differs from the trial's configuration."""
    at_ms: Mapped[int] = mapped_column(BigInteger)


class SpecVersionRow(Base):
    """A version of the spec of an experiment that was extended; there are none of one that never was."""

    __tablename__ = "spec_versions"

    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    """0 is what was submitted."""
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    since_sequence: Mapped[int] = mapped_column(BigInteger)
    """`experiments.sequence` when it came into force."""
    at_ms: Mapped[int] = mapped_column(BigInteger)


class WarmStartRow(Base):
    """What an experiment's sampler learned from other experiments, as it was when the experiment was submitted."""

    __tablename__ = "warm_starts"

    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), primary_key=True)
    trials: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    """`warm_start.WarmTrial` of each trial that is used, in the order in which they are told."""
    skipped: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    """`warm_start.Skipped`: how many trials of which experiment are not used, by reason."""
    at_ms: Mapped[int] = mapped_column(BigInteger)


class AnalysisRow(Base):
    """What was last worked out of an experiment's trials, and whether somebody waits for a newer one."""

    __tablename__ = "analyses"

    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), primary_key=True)
    wanted_ms: Mapped[int | None] = mapped_column(BigInteger)
    """Since when somebody waits; null if nobody does."""
    sequence: Mapped[int | None] = mapped_column(BigInteger)
    """`experiments.sequence` that `document` is about."""
    document: Mapped[dict[str, Any] | None] = mapped_column(Json)
    problem: Mapped[str | None] = mapped_column(Text)
    """Why the last attempt gave none."""
    at_ms: Mapped[int | None] = mapped_column(BigInteger)


class TransitionRow(Base):
    """A legal move between states, for the triggers to look up. The migrations fill it from states.TRANSITIONS."""

    __tablename__ = "transitions"

    entity: Mapped[str] = mapped_column(String(16), primary_key=True)
    """`experiments`, `trials` or `runs`: the table whose `state` moves."""
    source: Mapped[str] = mapped_column(String(16), primary_key=True)
    target: Mapped[str] = mapped_column(String(16), primary_key=True)


class EventRow(Base):
    """The append-only history; the stream of `/v1/.../events` is this table in order of `id`."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(Sequence, primary_key=True, autoincrement=True)
    at_ms: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(String(40))
    """`experiment.state`, `trial.proposed`, `trial.state`, `run.state`, `rung.arrived`, `rung.decided`,
    `checkpoint.committed`, `evaluation`, `spike`, `alarm`, `command.*`."""
    experiment_id: Mapped[str | None] = mapped_column(ForeignKey("experiments.id"), index=True)
    trial_id: Mapped[str | None] = mapped_column(String(32))
    run_id: Mapped[str | None] = mapped_column(String(32))
    data: Mapped[dict[str, Any]] = mapped_column(Json)


class CommandRow(Base):
    """A wish of a user, written by the API and applied by the orchestrator."""

    __tablename__ = "commands"
    __table_args__ = (
        Index("uq_commands_idempotency_key", "idempotency_key", unique=True),
        CheckConstraint("state IN ('pending', 'applied', 'rejected')", name="state"),
    )

    id: Mapped[int] = mapped_column(Sequence, primary_key=True, autoincrement=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiments.id"), index=True)
    kind: Mapped[str] = mapped_column(String(24))
    """`pause`, `resume`, `cancel`, `kill`, `prioritize`; of a trial `stop`, `retry`, `add`."""
    trial_id: Mapped[str | None] = mapped_column(String(32))
    """The trial it is about; of `retry` and `add` the one that it made."""
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    idempotency_fingerprint: Mapped[str | None] = mapped_column(String(64))
    payload: Mapped[dict[str, Any]] = mapped_column(Json)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text, default="")
    created_at_ms: Mapped[int] = mapped_column(BigInteger)
    applied_at_ms: Mapped[int | None] = mapped_column(BigInteger)


class TrackingRow(Base):
    """How far the forwarder has brought a trial to MLflow."""

    __tablename__ = "tracking"

    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"), primary_key=True)
    mlflow_run_id: Mapped[str | None] = mapped_column(String(64))
    positions: Mapped[dict[str, Any]] = mapped_column(Json)
    """What was forwarded and acknowledged, per run and kind of telemetry."""
    finished: Mapped[bool] = mapped_column(default=False)
    """The MLflow run is closed with the trial's final state."""
    updated_at_ms: Mapped[int] = mapped_column(BigInteger)


class ServiceRow(Base):
    """The processes of this installation, as they last reported: `orchestrator`, `ray`, `mlflow`, `forwarder`."""

    __tablename__ = "services"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    pid: Mapped[int | None] = mapped_column(Integer)
    url: Mapped[str | None] = mapped_column(String(400))
    state: Mapped[str] = mapped_column(String(16))
    """`starting`, `ready`, `failed` or `stopped`."""
    detail: Mapped[dict[str, Any]] = mapped_column(Json)
    """For `ray`: the cluster's nodes and resources, the basis of admission."""
    heartbeat_ms: Mapped[int] = mapped_column(BigInteger)
