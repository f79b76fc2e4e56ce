/** Where a trial's weights come from and what went on from them: its checkpoints and its forks. */

import { Link } from "wouter";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { Panel } from "../components/Panel";
import { StateBadge } from "../components/StateBadge";
import { formatCount, formatFixed, formatSetting } from "../lib/format";
import { NONE } from "../lib/glyphs";

/** The values that a fork changed, in one line. */
export function changesInWords(changes: Readonly<Record<string, unknown>>): string {
  const parts = Object.entries(changes).map(([path, value]) => `${path} = ${formatSetting(value)}`);
  return parts.length === 0 ? "nothing changed" : parts.join(", ");
}

/** One sentence on a fork's own page: what it goes on from. */
export function ForkedFrom({ fork }: { readonly fork: Schemas["ForkRead"] }): React.JSX.Element {
  return (
    <p className="notice">
      Forked from <Link href={`/t/${fork.trial_id}`}>trial {fork.trial_number}</Link> of <Link href={`/e/${fork.parent_experiment_id}`}>{fork.parent_name}</Link> at step {fork.step}: {changesInWords(fork.changes)}.
    </p>
  );
}

/** What a trial goes on from, or what goes on in its place: a fork, another attempt, a copy of a better trial. */
export function Origins({ trial, fork }: { readonly trial: Schemas["TrialDetail"]; readonly fork: Schemas["ForkRead"] | null }): React.JSX.Element {
  return (
    <>
      {fork !== null && <ForkedFrom fork={fork} />}
      {trial.parent_trial_id !== null && (
        <p className="notice">
          Goes on from <Link href={`/t/${trial.parent_trial_id}`}>a trial of this population that did better</Link>, with changed values.
        </p>
      )}
      {trial.retry_of !== null && (
        <p className="notice">
          Another attempt at <Link href={`/t/${trial.retry_of}`}>the trial that failed</Link>.
        </p>
      )}
      {trial.retried_by !== null && (
        <p className="notice">
          Tried again as <Link href={`/t/${trial.retried_by}`}>another trial</Link>.
        </p>
      )}
    </>
  );
}

interface Props {
  readonly checkpoints: Answer<Schemas["CheckpointList"]>;
  readonly forks: Answer<Schemas["ForkList"]>;
  readonly onFork: (checkpointId: string) => void;
}

export function LineagePanel({ checkpoints, forks, onFork }: Props): React.JSX.Element {
  const made = forks.data?.items ?? [];
  return (
    <Panel
      title="Checkpoints and forks"
      hint="Checkpoints that are still kept. A fork goes on from one of them, with other values."
      answer={checkpoints}
      height={120}
      empty={(list) => (list.items.length === 0 && made.length === 0 ? "No checkpoint is kept. keep_checkpoints in a spec says which are." : null)}
    >
      {(list) => (
        <>
          {list.items.length > 0 && (
            <div className="table-wrap">
              <table>
                <caption className="visually-hidden">Checkpoints</caption>
                <thead>
                  <tr>
                    <th scope="col" className="num">Step</th>
                    <th scope="col" className="num">Tokens</th>
                    <th scope="col" className="num">Objective</th>
                    <th scope="col">
                      <span className="visually-hidden">Fork</span>
                    </th>
                  </tr>
                </thead>
                <tbody>
                  {list.items.map((one) => (
                    <tr key={one.id}>
                      <td className="num">{one.step}</td>
                      <td className="num">{formatCount(one.tokens)}</td>
                      <td className="num">{one.objective === null ? NONE : formatFixed(one.objective, 3)}</td>
                      <td className="row-actions">
                        {one.is_pinned && (
                          <span className="tag tone-quiet" title="A fork began from it: it is not deleted">
                            pinned
                          </span>
                        )}
                        <button type="button" className="quiet-button" onClick={() => onFork(one.id)}>
                          Fork from here
                        </button>
                      </td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )}
          {made.length > 0 && (
            <>
              <h3 className="list-head">Forks of this trial</h3>
              <ul className="plain-list">
                {made.map((fork) => (
                  <li key={fork.experiment_id}>
                    <Link href={`/e/${fork.experiment_id}`}>{fork.name}</Link> <StateBadge state={fork.state} />
                    <span className="sub">
                      from step {fork.step}: {changesInWords(fork.changes)}
                    </span>
                  </li>
                ))}
              </ul>
            </>
          )}
        </>
      )}
    </Panel>
  );
}
