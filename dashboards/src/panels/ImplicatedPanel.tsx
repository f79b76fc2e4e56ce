/** The same documents in the batches of spikes of several trials, beside how often chance would have put them there. */

import { Link } from "wouter";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { Panel } from "../components/Panel";
import { Switch } from "../components/Switch";
import { formatNumber } from "../lib/format";
import { metricName } from "./metrics";

type Implicated = Schemas["ImplicatedDocuments"];
type Item = Implicated["items"][number];

interface Props {
  readonly answer: Answer<Implicated>;
  readonly everywhere: boolean;
  readonly onEverywhere: (everywhere: boolean) => void;
}

const SCOPES = [
  { value: "here", name: "this experiment" },
  { value: "everywhere", name: "all experiments", title: "Trials of other experiments of this installation count too" },
] as const;
const MOST_SPIKES = 12;

/** Why there is nothing to list. */
export function nothingInWords({ num_trials, num_spiking_trials, num_spikes, min_trials }: Pick<Implicated, "num_trials" | "num_spiking_trials" | "num_spikes" | "min_trials">): string {
  if (num_spikes === 0) return num_trials === 0 ? "No trial has trained yet." : "No trial had a spike.";
  if (num_spiking_trials < min_trials) return `Only ${num_spiking_trials} of ${num_trials} trials had a spike: it takes ${min_trials} to have something in common.`;
  return `${num_spikes} spikes in ${num_spiking_trials} of ${num_trials} trials; no document was in the batches of ${min_trials} of them.`;
}

export function ImplicatedPanel({ answer, everywhere, onEverywhere }: Props): React.JSX.Element {
  return (
    <Panel
      title="Documents in spikes of several trials"
      hint={answer.data?.note ?? "Documents that were in the batch of a spike in two trials or more. That they coincide does not make them the cause."}
      className="wide"
      answer={answer}
      height={90}
      empty={(found) => (found.items.length === 0 ? nothingInWords(found) : null)}
      actions={<Switch label="Trials of" options={SCOPES} value={everywhere ? "everywhere" : "here"} onChange={(scope) => onEverywhere(scope === "everywhere")} />}
    >
      {(found) => (
        <>
          <ol className="implicated">
            {found.items.map((item) => (
              <ImplicatedItem key={item.documents.map((document) => document.document_id).join()} item={item} experimentId={found.experiment_id} />
            ))}
          </ol>
          {found.num_truncated > 0 && <p className="muted">{found.num_truncated} of the spikes had more documents in their batch than were recorded; those are not known.</p>}
        </>
      )}
    </Panel>
  );
}

function ImplicatedItem({ item, experimentId }: { readonly item: Item; readonly experimentId: string }): React.JSX.Element {
  return (
    <li>
      <p>{item.summary}</p>
      <p className="mono document-ids">{item.documents.map(({ document_id }) => document_id).join(", ")}</p>
      {item.text !== null && <pre>{item.text}</pre>}
      <ul className="implicated-spikes">
        {item.spikes.slice(0, MOST_SPIKES).map((spike) => (
          <li key={`${spike.run_id} ${spike.step}`}>
            <Link href={`/t/${spike.trial_id}?step=${spike.step}`} title={`${spike.metrics.map(metricName).join(", ")}; samples ${spike.sample_indices.join(" to ")}`}>
              trial {spike.trial_number}, step {spike.step}
            </Link>
            {spike.experiment_id !== experimentId && <span className="sub-inline">another experiment</span>}
            {spike.z !== null && <span className="sub-inline">z {formatNumber(spike.z, 2)}</span>}
          </li>
        ))}
        {item.spikes.length > MOST_SPIKES && <li className="muted">and {item.spikes.length - MOST_SPIKES} more</li>}
      </ul>
    </li>
  );
}
