/** What users asked of an experiment, and what became of it. */

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { Frame } from "../components/Panel";
import { formatDuration, formatSetting, formatTime } from "../lib/format";
import { NONE } from "../lib/glyphs";

const TONES: Readonly<Record<string, string>> = { pending: "tone-warn", applied: "tone-good", rejected: "tone-bad" };

interface Props {
  readonly answer: Answer<Schemas["CommandList"]>;
  readonly trialNames: ReadonlyMap<string, string>;
}

export function CommandsPanel({ answer, trialNames }: Props): React.JSX.Element | null {
  const commands = answer.data?.items ?? [];
  if (commands.length === 0) return null;
  return (
    <Frame title="Commands" hint="What was asked of this experiment, newest first. A command waits until the process that runs the experiment has taken it.">
      <div className="table-wrap">
        <table>
          <caption className="visually-hidden">Commands</caption>
          <thead>
            <tr>
              <th scope="col">Command</th>
              <th scope="col">Trial</th>
              <th scope="col">State</th>
              <th scope="col">Asked</th>
              <th scope="col" className="num">Taken after</th>
              <th scope="col">Why</th>
            </tr>
          </thead>
          <tbody>
            {[...commands].reverse().map((command) => (
              <tr key={command.id}>
                <td title={formatSetting(command.payload)}>{command.kind.replaceAll("_", " ")}</td>
                <td>{command.trial_id === null ? NONE : (trialNames.get(command.trial_id) ?? command.trial_id)}</td>
                <td>
                  <span className={`tag ${TONES[command.state] ?? "tone-quiet"}`}>{command.state}</span>
                </td>
                <td className="nowrap">{formatTime(command.created_at_ms)}</td>
                <td className="num">{command.applied_at_ms === null ? NONE : formatDuration((command.applied_at_ms - command.created_at_ms) / 1000)}</td>
                <td>{command.reason === "" ? NONE : command.reason}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Frame>
  );
}
