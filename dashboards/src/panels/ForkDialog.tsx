/** "Fork from here": a checkpoint, the values that differ, and what the API has to say to each. */

import { useId, useRef, useState } from "react";

import type { Schemas } from "../api/client";
import { freshKey, useFork } from "../api/commands";
import { Modal } from "../components/Dialogs";
import { formatCount, formatFixed } from "../lib/format";
import { changesOf, fieldOf, valueAt, writeValue } from "../lib/fork";
import { ELLIPSIS, RIGHT } from "../lib/glyphs";

interface Props {
  readonly config: unknown;
  readonly checkpoints: Schemas["CheckpointList"];
  /** Chosen at first. */
  readonly checkpointId: string;
  readonly onClose: () => void;
  readonly onForked: (experimentId: string) => void;
}

// What most forks change comes first; the rest is in the order of the configuration.
const FIRST = ["optimizer.lr", "loop.budget_tokens", "loop.max_grad_norm"];

interface FieldProps {
  readonly path: string;
  readonly before: string;
  readonly typed: string | undefined;
  readonly problem: string | undefined;
  readonly onType: (text: string) => void;
}

function Field({ path, before, typed, problem, onType }: FieldProps): React.JSX.Element {
  const problemId = useId();
  const changed = typed !== undefined && typed !== before;
  return (
    <label className={changed ? "fork-field changed" : "fork-field"}>
      <span className="fork-path mono">{path}</span>
      <span className="fork-before mono muted">{changed ? `${before} ${RIGHT}` : ""}</span>
      <input aria-label={path} value={typed ?? before} spellCheck={false} autoComplete="off" aria-invalid={problem !== undefined} aria-describedby={problem === undefined ? undefined : problemId} onChange={(event) => onType(event.target.value)} />
      {problem !== undefined && (
        <span className="field-problem" role="alert" id={problemId}>
          {problem}
        </span>
      )}
    </label>
  );
}

export function ForkDialog({ config, checkpoints, checkpointId, onClose, onForked }: Props): React.JSX.Element {
  const fork = useFork();
  const [from, setFrom] = useState(checkpointId);
  const [typed, setTyped] = useState<ReadonlyMap<string, string>>(new Map());
  const [name, setName] = useState("");
  const [query, setQuery] = useState("");
  const [other, setOther] = useState("");
  // The same wish sent again, after a lost answer, keeps its key; another wish gets another one.
  const wish = useRef({ body: "", key: "" });
  const checkpoint = checkpoints.items.find((one) => one.id === from);
  const offered = checkpoints.forkable;
  const paths = [...new Set([...FIRST.filter((path) => offered.includes(path)), ...offered, ...typed.keys()])];
  const shown = paths.filter((path) => typed.has(path) || path.toLowerCase().includes(query.toLowerCase()));
  const problems = new Map((fork.error?.errors ?? []).map((error) => [fieldOf(error.pointer), error.message]));
  const elsewhere = fork.error === null ? [] : fork.error.errors.length === 0 ? [fork.error.message] : [...problems].filter(([field]) => !shown.includes(field) && field !== "step" && field !== "name").map(([field, message]) => `${field}: ${message}`);
  const changes = changesOf(typed, config);
  const count = Object.keys(changes).length;

  const submit = (): void => {
    if (checkpoint === undefined) return;
    const body = { step: checkpoint.step, set: changes, name: name.trim() === "" ? null : name.trim() };
    const text = JSON.stringify([checkpoint.run_id, body]);
    if (text !== wish.current.body) wish.current = { body: text, key: freshKey() };
    fork.mutate({ runId: checkpoint.run_id, body, key: wish.current.key }, { onSuccess: (experiment) => onForked(experiment.id) });
  };
  const type = (path: string, text: string): void => setTyped((before) => new Map(before).set(path, text));

  return (
    <Modal title="Fork from a checkpoint" onClose={onClose} wide>
      <p className="muted">A new experiment of one trial goes on from there. Weights, optimizer states and the place in the data are the checkpoint&apos;s, so only values that give them no other shape or meaning may change.</p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          submit();
        }}
      >
        <div className="fork-head">
          <label>
            From
            <select value={from} onChange={(event) => setFrom(event.target.value)} autoFocus>
              {checkpoints.items.map((one) => (
                <option key={one.id} value={one.id}>
                  step {one.step} ({formatCount(one.tokens)} tokens{one.objective === null ? "" : `, objective ${formatFixed(one.objective, 3)}`})
                </option>
              ))}
            </select>
            {problems.has("step") && (
              <span className="field-problem" role="alert">
                {problems.get("step")}
              </span>
            )}
          </label>
          <label>
            Name
            <input value={name} maxLength={120} placeholder="derived from the trial" onChange={(event) => setName(event.target.value)} />
            {problems.has("name") && (
              <span className="field-problem" role="alert">
                {problems.get("name")}
              </span>
            )}
          </label>
        </div>
        <fieldset className="fork-fields">
          <legend>
            Values <input type="search" aria-label="Filter values" placeholder="Filter" value={query} onChange={(event) => setQuery(event.target.value)} />
          </legend>
          <div className="fork-scroll">
            {shown.map((path) => (
              <Field key={path} path={path} before={writeValue(valueAt(config, path))} typed={typed.get(path)} problem={problems.get(path)} onType={(text) => type(path, text)} />
            ))}
            {shown.length === 0 && <p className="muted">No value that a fork may change matches.</p>}
          </div>
          <div className="fork-other">
            <input aria-label="Another path" placeholder="another path, e.g. schedule" className="mono" value={other} onChange={(event) => setOther(event.target.value)} />
            <button
              type="button"
              className="button"
              disabled={other.trim() === "" || paths.includes(other.trim())}
              onClick={() => {
                type(other.trim(), writeValue(valueAt(config, other.trim())));
                setOther("");
              }}
            >
              Add
            </button>
          </div>
        </fieldset>
        {elsewhere.map((message) => (
          <p key={message} className="failed" role="alert">
            {message}
          </p>
        ))}
        <div className="dialog-foot">
          <button type="button" className="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" className="button primary" disabled={checkpoint === undefined || fork.isPending}>
            {fork.isPending ? `Queueing${ELLIPSIS}` : count === 0 ? "Fork with nothing changed" : `Fork with ${count} ${count === 1 ? "change" : "changes"}`}
          </button>
        </div>
      </form>
    </Modal>
  );
}
