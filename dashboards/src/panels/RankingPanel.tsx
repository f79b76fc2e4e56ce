/** Who is ahead, by how much over the baseline, and what this does not show. */

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { Panel } from "../components/Panel";
import { formatCount, formatFixed, formatSigned } from "../lib/format";
import { trialName } from "../lib/trials";
import { differenceTone, objectiveName, objectiveUnit } from "./objective";
import { PointRanking } from "./PointRanking";

const MOST = 8;

/** Share of the bar: 0 at the best, 1 at the worst shown. */
function shareOf(value: number, values: readonly number[]): number {
  const low = Math.min(...values);
  const high = Math.max(...values);
  return high === low ? 0 : (value - low) / (high - low);
}

export function RankingPanel({ answer }: { readonly answer: Answer<Schemas["Comparison"]> }): React.JSX.Element {
  return (
    <Panel
      title="Comparison"
      hint={answer.data === undefined ? undefined : `By ${objectiveName(answer.data.objective)}. At ${answer.data.contract}.`}
      answer={answer}
      height={240}
    >
      {(comparison) => <Ranking comparison={comparison} />}
    </Panel>
  );
}

/** Whether seeds alone can explain the difference to the baseline; nothing while that is not known. */
export function noiseInWords(row: Pick<Schemas["ComparisonRow"], "differences">, baselineId: string | null): string {
  const within = row.differences.find((difference) => difference.baseline_trial_id === baselineId)?.within_noise ?? null;
  return within === null ? "" : within ? "within seed noise" : "beyond seed noise";
}

function Ranking({ comparison }: { readonly comparison: Schemas["Comparison"] }): React.JSX.Element {
  const ranked = comparison.rows.filter((row) => row.rank !== null && row.objective !== null).sort((a, b) => (a.rank ?? 0) - (b.rank ?? 0));
  const shown = ranked.slice(0, MOST);
  const baseline = ranked.find((row) => row.trial_id === comparison.baseline_trial_id);
  if (baseline !== undefined && !shown.includes(baseline)) shown[shown.length - 1] = baseline;
  const values = shown.map((row) => row.objective ?? 0);
  return (
    <>
      {shown.length === 0 ? (
        <p className="muted">No trial has completed yet; the ranking begins with the first.</p>
      ) : comparison.points.length > 0 ? (
        <PointRanking comparison={comparison} />
      ) : (
        <ol className="ranking">
          <li className="ranking-head" aria-hidden="true">
            <span />
            <span>trial</span>
            <span />
            <span className="num">{objectiveUnit(comparison.objective)}</span>
            <span className="num">vs baseline</span>
            <span />
            <span className="num">active</span>
          </li>
          {shown.map((row) => {
            const mine = row.trial_id === comparison.baseline_trial_id;
            return (
              <li key={row.trial_id} className={mine ? "baseline" : ""}>
                <span className="ranking-rank">{row.rank}</span>
                <span className="ranking-name" title={trialName(row)}>
                  {trialName(row)}
                </span>
                <span className="ranking-track" aria-hidden="true">
                  <span className="ranking-dot" style={{ left: `${shareOf(row.objective ?? 0, values) * 100}%` }} />
                </span>
                <span className="num">{formatFixed(row.objective, 3)}</span>
                <span className={`num ${mine ? "muted" : differenceTone(row.difference_to_baseline, comparison.objective)}`}>{mine ? "baseline" : formatSigned(row.difference_to_baseline)}</span>
                <span className="ranking-noise">{mine ? "" : noiseInWords(row, comparison.baseline_trial_id)}</span>
                <span className="num muted" title="active parameters">
                  {formatCount(row.active_parameters)}
                </span>
              </li>
            );
          })}
        </ol>
      )}
      {ranked.length > shown.length && comparison.points.length === 0 && <p className="muted">{ranked.length - shown.length} more in the table below.</p>}
      {comparison.caveats.length > 0 && (
        <div className="caveats">
          <h3>What this does not show</h3>
          <ul>
            {comparison.caveats.map((caveat) => (
              <li key={caveat}>{caveat}</li>
            ))}
          </ul>
        </div>
      )}
    </>
  );
}
