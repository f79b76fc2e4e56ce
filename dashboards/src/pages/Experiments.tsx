/** `/`: what is running, what finished, was anything bad? */

import { useState } from "react";
import { Link, useLocation } from "wouter";

import type { Schemas } from "../api/client";
import { isLive, useExperiments, useQueue } from "../api/queries";
import { LiveChip } from "../components/LiveChip";
import { Panel } from "../components/Panel";
import { SortableTable, type Column } from "../components/SortableTable";
import { CountsBar, StateBadge } from "../components/StateBadge";
import { useAddress } from "../lib/address";
import { useNow } from "../lib/clock";
import { formatAge, formatDuration, formatFixed, formatPercent, formatSigned, formatTime } from "../lib/format";
import { DOT, NONE } from "../lib/glyphs";
import { ExperimentCommands } from "../panels/Commands";
import { differenceTone, objectiveName, objectiveUnit } from "../panels/objective";
import { QueuePanel } from "../panels/QueuePanel";

type Summary = Schemas["ExperimentSummary"];

/** Best trial of the search minus the first baseline; null without both. */
function difference({ best, baseline }: Summary): number | null {
  return best === null || baseline === null ? null : best.objective - baseline.objective;
}

function columns(now: number, chosen: ReadonlySet<string>, onToggle: (id: string) => void): Column<Summary>[] {
  return [
    {
      id: "select",
      name: <span className="visually-hidden">Selected</span>,
      cell: (experiment) => <input type="checkbox" aria-label={`Select ${experiment.name}`} checked={chosen.has(experiment.id)} onChange={() => onToggle(experiment.id)} />,
    },
    {
      id: "name",
      name: "Experiment",
      className: "wide-cell",
      value: (experiment) => experiment.name,
      cell: (experiment) => (
        <>
          <Link href={`/e/${experiment.id}`} className="row-link">
            {experiment.name}
          </Link>
          <span className="sub">
            <span className="mono">{experiment.id}</span> {DOT} {experiment.owner}
            {experiment.priority !== 0 && ` ${DOT} priority ${experiment.priority}`}
          </span>
        </>
      ),
    },
    {
      id: "state",
      name: "State",
      value: (experiment) => experiment.state,
      cell: (experiment) => (
        <>
          <StateBadge state={experiment.state} reason={experiment.reason} />
          {isLive(experiment.state) && experiment.reason !== "" && <span className="sub clamp">{experiment.reason}</span>}
          {experiment.eta_s !== null && isLive(experiment.state) && <span className="sub">about {formatDuration(Math.round(experiment.eta_s))} left</span>}
        </>
      ),
    },
    {
      id: "trials",
      name: "Trials",
      cell: (experiment) => <CountsBar counts={experiment.trial_counts} planned={experiment.num_trials} />,
    },
    {
      id: "best",
      name: "Best",
      numeric: true,
      title: "Best objective of a completed trial of the search",
      value: (experiment) => experiment.best?.objective,
      cell: (experiment) =>
        experiment.best === null ? (
          NONE
        ) : (
          <>
            {formatFixed(experiment.best.objective, 3)}
            <span className="sub">
              {objectiveUnit(experiment.objective)}, trial {experiment.best.number}
            </span>
          </>
        ),
    },
    {
      id: "difference",
      name: "vs baseline",
      numeric: true,
      title: "Best trial minus the first baseline",
      value: difference,
      cell: (experiment) => {
        const found = difference(experiment);
        return (
          <>
            <span className={differenceTone(found, experiment.objective)}>{formatSigned(found)}</span>
            {experiment.baseline?.label != null && <span className="sub">{experiment.baseline.label}</span>}
          </>
        );
      },
    },
    {
      id: "spikes",
      name: "Spikes",
      numeric: true,
      title: "Loss and gradient spikes over all trials",
      value: (experiment) => experiment.num_spikes,
      cell: (experiment) => (experiment.num_spikes === 0 ? "0" : <span className="tag tone-warn">{experiment.num_spikes}</span>),
    },
    {
      id: "dead",
      name: "Dead experts",
      numeric: true,
      title: "Largest fraction of experts without a token, of any layer of any finished trial",
      value: (experiment) => experiment.max_dead_fraction,
      cell: ({ max_dead_fraction: dead }) => (dead === null ? NONE : dead === 0 ? "none" : <span className="tag tone-dead">{formatPercent(dead)}</span>),
    },
    {
      id: "age",
      name: "Submitted",
      value: (experiment) => -experiment.created_at_ms,
      cell: (experiment) => <time title={formatTime(experiment.created_at_ms)}>{formatAge(experiment.created_at_ms, now)}</time>,
    },
  ];
}

function NothingYet(): React.JSX.Element {
  return (
    <div className="welcome">
      <h3>No experiment yet</h3>
      <p>Submit one from a terminal; it appears here by itself.</p>
      <pre>
        <code>
          {"evenload submit studies/000-balancing/spec.yaml\n"}
          {"make demo     # starts everything and submits that sweep"}
        </code>
      </pre>
    </div>
  );
}

export function Experiments(): React.JSX.Element {
  const [params, change] = useAddress();
  const [, navigate] = useLocation();
  const cursor = params.get("cursor");
  const answer = useExperiments(cursor);
  const now = useNow();
  const items = answer.data?.items ?? [];
  const queue = useQueue();
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  const toggle = (id: string): void =>
    setChosen((before) => {
      const after = new Set(before);
      if (!after.delete(id)) after.add(id);
      return after;
    });
  const query = params.get("q") ?? "";
  const rows = items.filter((experiment) => `${experiment.name} ${experiment.id} ${experiment.state}`.toLowerCase().includes(query.toLowerCase()));
  const mine = rows.filter((experiment) => chosen.has(experiment.id));
  const names = [...new Set(items.map((item) => objectiveName(item.objective)))];
  return (
    <>
      <div className="page-head">
        <h1>Experiments</h1>
        <LiveChip live={items.some((item) => isLive(item.state))} answer={answer} />
        <span className="grow" />
        <input type="search" placeholder="Search (/)" aria-label="Search experiments" value={query} onChange={(event) => change({ q: event.target.value === "" ? null : event.target.value })} />
      </div>
      <QueuePanel answer={queue} />
      <Panel
        title="All experiments, newest first"
        hint={names.length === 1 && names[0] !== undefined ? `Best is that of the completed trials of the search, by ${names[0]}. A small difference may be seed noise: see the experiment's page.` : undefined}
        answer={answer}
        height={300}
        empty={(page) => (page.items.length === 0 ? <NothingYet /> : rows.length === 0 ? `No experiment on this page matches "${query}".` : null)}
      >
        {(page) => (
          <>
            {mine.length > 0 && (
              <div className="bulk-bar" role="group" aria-label="Selected experiments">
                <strong>{mine.length} selected</strong>
                <ExperimentCommands experiments={mine} bulk />
                <span className="grow" />
                <button type="button" className="quiet-button" onClick={() => setChosen(new Set())}>
                  Clear
                </button>
              </div>
            )}
            <SortableTable
              caption="Experiments"
              columns={columns(now, chosen, toggle)}
              rows={rows}
              rowKey={(experiment) => experiment.id}
              rowClass={(experiment) => (chosen.has(experiment.id) ? "selected" : "")}
              onOpen={(experiment) => navigate(`/e/${experiment.id}`)}
              onSelect={(experiment) => toggle(experiment.id)}
            />
            {(cursor !== null || page.next_cursor !== null) && (
              <p className="pager">
                {cursor !== null && (
                  <button type="button" className="button" onClick={() => change({ cursor: null })}>
                    Newest
                  </button>
                )}
                {page.next_cursor !== null && (
                  <button type="button" className="button" onClick={() => change({ cursor: page.next_cursor })}>
                    Older
                  </button>
                )}
              </p>
            )}
          </>
        )}
      </Panel>
    </>
  );
}
