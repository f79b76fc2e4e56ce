/** What happened to a trial: its runs, and what the scheduler decided. */

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { Empty, Frame, Panel } from "../components/Panel";
import { StateBadge } from "../components/StateBadge";
import { formatCount, formatDuration, formatFixed, formatTime } from "../lib/format";
import { NONE } from "../lib/glyphs";

function text(environment: Readonly<Record<string, unknown>> | null, name: string): string {
  const value = environment?.[name];
  return typeof value === "string" || typeof value === "number" ? String(value) : NONE;
}

export function RunsPanel({ answer, now }: { readonly answer: Answer<Schemas["RunList"]>; readonly now: number }): React.JSX.Element {
  return (
    <Panel
      title="Runs"
      hint="Each execution of this trial: a retry or a resume is a new run. For steps in several of them the later run counts."
      answer={answer}
      height={120}
      empty={(list) => (list.items.length === 0 ? "Not started yet." : null)}
    >
      {(list) => (
        <div className="table-wrap">
          <table>
            <caption className="visually-hidden">Runs</caption>
            <thead>
              <tr>
                <th scope="col">#</th>
                <th scope="col">State</th>
                <th scope="col" className="num">From step</th>
                <th scope="col" className="num">To step</th>
                <th scope="col" className="num">Lasted</th>
                <th scope="col">Device</th>
                <th scope="col">Commit</th>
              </tr>
            </thead>
            <tbody>
              {list.items.map((run) => (
                <tr key={run.id} title={run.id}>
                  <td>{run.number}</td>
                  <td>
                    <StateBadge state={run.state} cause={run.cause ?? null} reason={run.reason} />
                    {run.reason !== "" && <span className="sub clamp">{run.reason}</span>}
                  </td>
                  <td className="num">{run.resumed_from_step ?? 0}</td>
                  <td className="num">{run.progress?.step ?? NONE}</td>
                  <td className="num" title={run.started_at_ms === null ? "" : formatTime(run.started_at_ms)}>
                    {run.started_at_ms === null ? NONE : formatDuration(((run.finished_at_ms ?? now) - run.started_at_ms) / 1000)}
                  </td>
                  <td>{text(run.environment, "device_name") === NONE ? text(run.environment, "device") : text(run.environment, "device_name")}</td>
                  <td className="mono">{text(run.environment, "git_commit").slice(0, 8)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </Panel>
  );
}

export function RungsPanel({ rungs }: { readonly rungs: readonly Schemas["RungRead"][] }): React.JSX.Element {
  return (
    <Frame title="Scheduler decisions" hint="At each rung the trial goes on if it is among the best that have arrived so far.">
      {rungs.length === 0 ? (
        <Empty>No rung reached, or the experiment has no scheduler.</Empty>
      ) : (
        <div className="table-wrap">
          <table>
            <caption className="visually-hidden">Scheduler decisions</caption>
            <thead>
              <tr>
                <th scope="col">Rung</th>
                <th scope="col" className="num">Tokens</th>
                <th scope="col" className="num">Objective</th>
                <th scope="col">Decision</th>
                <th scope="col">Why</th>
              </tr>
            </thead>
            <tbody>
              {rungs.map((rung) => (
                <tr key={rung.rung}>
                  <td>{rung.rung}</td>
                  <td className="num">{formatCount(rung.tokens)}</td>
                  <td className="num">{formatFixed(rung.value, 3)}</td>
                  <td>{rung.decision === "stop" ? <span className="tag tone-cut">stop</span> : rung.decision === "continue" ? "continue" : "waits"}</td>
                  <td>{rung.explanation ?? NONE}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </Frame>
  );
}
