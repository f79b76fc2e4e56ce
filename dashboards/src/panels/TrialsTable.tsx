/** Trials of an experiment: what differs, how far, how good, how healthy. */

import { Fragment } from "react";
import { Link } from "wouter";

import type { Schemas } from "../api/client";
import { isLive } from "../api/queries";
import { Swatch } from "../charts/Legend";
import { SortableTable, type Column } from "../components/SortableTable";
import { StateBadge } from "../components/StateBadge";
import { formatCount, formatFixed, formatNumber, formatSetting, formatSigned } from "../lib/format";
import { NONE, STAR } from "../lib/glyphs";
import { trialName, type Parameter } from "../lib/trials";
import { differenceTone, objectiveUnit } from "./objective";

type TrialRead = Schemas["TrialRead"];

/** A trial with its place in the comparison. */
export interface TrialRow {
  readonly trial: TrialRead;
  readonly compared: Schemas["ComparisonRow"] | undefined;
  readonly slot: number;
  /** What a baseline has in place of searched parameters. */
  readonly fixed: ReadonlyMap<string, unknown>;
}

interface Props {
  readonly rows: readonly TrialRow[];
  readonly parameters: readonly Parameter[];
  readonly objective: Schemas["Objective"];
  readonly baselineId: string | null;
  readonly selection: readonly string[];
  readonly onToggle: (id: string) => void;
  readonly onOpen: (id: string) => void;
  readonly onHover: (id: string | null) => void;
}

/** Tokens seen: of the newest run, else where the objective was measured. */
export function tokensOf(trial: TrialRead): number | null {
  return trial.progress?.tokens ?? trial.objective_tokens;
}

/** The trial's objective, or while it runs its last evaluation (bits per byte only). */
export function objectiveOf(trial: TrialRead, objective: Schemas["Objective"]): number | null {
  if (trial.objective !== null) return trial.objective;
  return objective.metric === "eval/loss" ? null : (trial.progress?.bits_per_byte ?? null);
}

/** Three digits are enough to tell trials apart; the trial's page has them all. */
function brief(value: unknown): string {
  return typeof value === "number" && !Number.isInteger(value) ? formatNumber(value, 3) : formatSetting(value);
}

function maxViolation(trial: TrialRead): { readonly value: number; readonly layer: number | null } | null {
  const value = trial.summary?.worst_max_violation ?? trial.progress?.max_violation ?? null;
  if (value === null) return null;
  return { value, layer: trial.summary?.worst_max_violation_layer ?? trial.progress?.max_violation_layer ?? null };
}

const entropyOf = (trial: TrialRead): number | null => trial.summary?.min_token_entropy ?? trial.progress?.token_entropy ?? null;
const spikesOf = (trial: TrialRead): number | null => trial.summary?.num_spikes ?? trial.progress?.num_spikes ?? null;
const lossOf = (trial: TrialRead): number | null => trial.summary?.final_loss ?? trial.progress?.loss ?? null;

function columns({ rows, parameters, objective, baselineId, selection, onToggle }: Props): Column<TrialRow>[] {
  const dense = ({ trial }: TrialRow): boolean => maxViolation(trial) === null && lossOf(trial) !== null;
  return [
    {
      id: "select",
      name: <span className="visually-hidden">Selected</span>,
      cell: ({ trial }) => <input type="checkbox" aria-label={`Select ${trialName(trial)} for comparison`} checked={selection.includes(trial.id)} onChange={() => onToggle(trial.id)} />,
    },
    {
      id: "rank",
      name: "Rank",
      numeric: true,
      title: "Among completed trials",
      value: (row) => row.compared?.rank,
      cell: ({ compared }) => compared?.rank ?? NONE,
    },
    {
      id: "trial",
      name: "Trial",
      value: (row) => row.trial.number,
      cell: ({ trial, slot }) => (
        <span className="nowrap">
          <Swatch slot={slot} />{" "}
          <Link href={`/t/${trial.id}`} className="row-link trial-name" title={trialName(trial)}>
            {trialName(trial)}
          </Link>
          {trial.id === baselineId && <span title="the baseline of the differences"> {STAR}</span>}
        </span>
      ),
    },
    {
      id: "state",
      name: "State",
      value: (row) => row.trial.state,
      cell: ({ trial }) => (
        <>
          <StateBadge state={trial.state} cause={trial.cause ?? null} reason={trial.reason} />
          {isLive(trial.state) && trial.reason !== "" && <span className="sub clamp">{trial.reason}</span>}
        </>
      ),
    },
    ...parameters.map(
      ({ path, name }): Column<TrialRow> => ({
        id: path,
        // Long names may break after an underscore.
        name: name.split(/(?<=[_.])/).map((part) => (
          <Fragment key={part}>
            {part}
            <wbr />
          </Fragment>
        )),
        title: path,
        numeric: rows.every(({ trial }) => trial.params[path] === undefined || typeof trial.params[path] === "number"),
        value: ({ trial, fixed }) => {
          const value = trial.params[path] ?? fixed.get(path);
          return typeof value === "number" ? value : value === undefined || value === null ? null : formatSetting(value);
        },
        cell: ({ trial, fixed }) => {
          if (trial.params[path] !== undefined) return <span title={formatSetting(trial.params[path])}>{brief(trial.params[path])}</span>;
          return fixed.has(path) ? <span className="muted">{formatSetting(fixed.get(path))}</span> : NONE;
        },
      }),
    ),
    ...(rows.some(({ trial }) => trial.replica !== null)
      ? [{ id: "seed", name: "Seed", numeric: true, title: "Which of its configuration's seeds", value: ({ trial }: TrialRow) => trial.replica, cell: ({ trial }: TrialRow) => trial.replica ?? NONE }]
      : []),
    {
      id: "tokens",
      name: "Tokens",
      numeric: true,
      value: ({ trial }) => tokensOf(trial),
      cell: ({ trial }) => {
        const tokens = tokensOf(trial);
        const budget = trial.progress?.budget_tokens;
        return (
          <>
            {formatCount(tokens)}
            {tokens !== null && budget !== undefined && <meter className="budget" min={0} max={budget} value={Math.min(tokens, budget)} title={`of ${formatCount(budget)}`} />}
          </>
        );
      },
    },
    { id: "loss", name: "Loss", numeric: true, title: "Training loss, nats/token: mean of the last 5 % of the steps, or the newest while it runs", value: ({ trial }) => lossOf(trial), cell: ({ trial }) => formatFixed(lossOf(trial), 3) },
    {
      id: "objective",
      name: objectiveUnit(objective),
      numeric: true,
      title: "Held-out. Of pruned trials: at their last rung",
      value: ({ trial }) => objectiveOf(trial, objective),
      cell: ({ trial, compared }) => <span className={compared?.rank === 1 ? "best" : trial.state === "completed" ? "" : "muted"}>{formatFixed(objectiveOf(trial, objective), 3)}</span>,
    },
    {
      id: "difference",
      name: "vs baseline",
      numeric: true,
      title: "Objective minus that of the first baseline; only completed trials saw as many tokens",
      value: ({ trial, compared }) => (trial.state === "completed" ? compared?.difference_to_baseline : null),
      cell: ({ trial, compared }) => {
        const difference = trial.state === "completed" && trial.id !== baselineId ? (compared?.difference_to_baseline ?? null) : null;
        return <span className={differenceTone(difference, objective)}>{formatSigned(difference)}</span>;
      },
    },
    {
      id: "maxvio",
      name: "MaxVio",
      numeric: true,
      title: "Of the worst layer: its busiest expert's load over the mean, minus 1",
      value: ({ trial }) => maxViolation(trial)?.value,
      cell: (row) => {
        const found = maxViolation(row.trial);
        if (found === null) return dense(row) ? <span className="muted">dense</span> : NONE;
        return (
          <>
            {formatNumber(found.value, 3)}
            {found.layer !== null && <span className="sub-inline">L{found.layer}</span>}
          </>
        );
      },
    },
    { id: "entropy", name: "Entropy", numeric: true, title: "Smallest token entropy of any layer, nats: how decided the router is", value: ({ trial }) => entropyOf(trial), cell: ({ trial }) => formatFixed(entropyOf(trial), 2) },
    {
      id: "spikes",
      name: "Spikes",
      numeric: true,
      value: ({ trial }) => spikesOf(trial),
      cell: ({ trial }) => {
        const spikes = spikesOf(trial);
        return spikes === null ? NONE : spikes === 0 ? "0" : <span className="tag tone-warn">{spikes}</span>;
      },
    },
  ];
}

export function TrialsTable(props: Props): React.JSX.Element {
  return (
    <SortableTable
      caption="Trials"
      className="trials-table"
      columns={columns(props)}
      rows={props.rows}
      rowKey={(row) => row.trial.id}
      rowClass={(row) => (props.selection.includes(row.trial.id) ? "selected" : "")}
      onOpen={(row) => props.onOpen(row.trial.id)}
      onSelect={(row) => props.onToggle(row.trial.id)}
      onHover={(row) => props.onHover(row?.trial.id ?? null)}
    />
  );
}
