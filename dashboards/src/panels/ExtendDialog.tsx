/** More trials for an experiment that has ended, in the same space or in a wider one. */

import { useId, useState } from "react";

import type { Schemas } from "../api/client";
import { useExtend } from "../api/commands";
import { Modal } from "../components/Dialogs";
import { wholeNumber } from "../lib/address";
import { fieldOf } from "../lib/fork";
import { ELLIPSIS } from "../lib/glyphs";
import { rangeInWords, rangeOf, typedDomain, widened, type TypedDomain } from "../lib/widen";

interface Props {
  readonly experiment: Schemas["ExperimentDetail"];
  readonly onClose: () => void;
}

type Domain = Readonly<Record<string, unknown>>;

interface FieldProps {
  readonly path: string;
  /** Null of a path that was not searched. */
  readonly before: Domain | null;
  readonly typed: TypedDomain;
  readonly problem: string | undefined;
  readonly onType: (typed: TypedDomain) => void;
}

function DomainField({ path, before, typed, problem, onType }: FieldProps): React.JSX.Element {
  const problemId = useId();
  const field = { spellCheck: false, autoComplete: "off", "aria-invalid": problem !== undefined, ...(problem === undefined ? {} : { "aria-describedby": problemId }) };
  const isRange = before !== null && rangeOf(before) !== null;
  return (
    <div className="domain-field" role="group" aria-label={path}>
      <span className="fork-path mono">{path}</span>
      {isRange ? (
        <>
          <input aria-label={`${path}, lowest`} value={typed.low} {...field} onChange={(event) => onType({ ...typed, low: event.target.value })} />
          <input aria-label={`${path}, highest`} value={typed.high} {...field} onChange={(event) => onType({ ...typed, high: event.target.value })} />
          <span className="muted">{rangeInWords(before)}</span>
        </>
      ) : (
        <input className="domain-text mono" aria-label={`${path}, domain`} placeholder='{"float": [0, 0.3]}' value={typed.text} {...field} onChange={(event) => onType({ ...typed, text: event.target.value })} />
      )}
      {problem !== undefined && (
        <span className="field-problem" role="alert" id={problemId}>
          {problem}
        </span>
      )}
    </div>
  );
}

export function ExtendDialog({ experiment, onClose }: Props): React.JSX.Element {
  const extend = useExtend(experiment.id);
  const space = (experiment.spec.space ?? {}) as Readonly<Record<string, Domain>>;
  const baselines = Array.isArray(experiment.spec.baselines) ? experiment.spec.baselines.length : 0;
  const planned = experiment.spec.num_trials;
  const made = Math.max(1, typeof planned === "number" ? planned : experiment.num_trials - baselines);
  const [text, setText] = useState(String(2 * made));
  const [typed, setTyped] = useState<ReadonlyMap<string, TypedDomain>>(() => new Map(Object.entries(space).map(([path, domain]) => [path, typedDomain(domain)])));
  const [other, setOther] = useState("");
  const wanted = wholeNumber(text, made + 1);
  const wider = widened(typed, space);
  const count = Object.keys(wider.space).length;
  const refused = new Map((extend.error?.errors ?? []).map((error) => [fieldOf(error.pointer).replace(/^space\./, ""), error.message]));
  const elsewhere = extend.error === null ? [] : extend.error.errors.length === 0 ? [extend.error.message] : [...refused].filter(([field]) => !typed.has(field)).map(([field, message]) => `${field}: ${message}`);
  const path = other.trim();
  const problemOf = (name: string): string | undefined => (wider.unreadable.includes(name) ? "not a domain" : refused.get(name));
  return (
    <Modal title={`Extend ${experiment.name}`} onClose={onClose} wide>
      <p className="muted">It is queued again and keeps its trials; the sampler learns from all of them. The space may become wider: every trial there is has to lie in it.</p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (wanted !== null && wider.unreadable.length === 0) extend.mutate({ num_trials: wanted, space: wider.space }, { onSuccess: onClose });
        }}
      >
        <label>
          {experiment.spec.replicas === 1 ? "Trials" : "Points"} of the search in all (it has made {made})
          <input type="number" min={made + 1} step={1} value={text} autoFocus onChange={(event) => setText(event.target.value)} aria-invalid={wanted === null} />
        </label>
        <fieldset className="fork-fields">
          <legend>Space</legend>
          <div className="fork-scroll">
            {[...typed].map(([name, value]) => (
              <DomainField key={name} path={name} before={space[name] ?? null} typed={value} problem={problemOf(name)} onType={(next) => setTyped((before) => new Map(before).set(name, next))} />
            ))}
          </div>
          <div className="fork-other">
            <input aria-label="Another path" placeholder="another path, e.g. optimizer.weight_decay" className="mono" value={other} onChange={(event) => setOther(event.target.value)} />
            <button
              type="button"
              className="button"
              disabled={path === "" || typed.has(path)}
              onClick={() => {
                setTyped((before) => new Map(before).set(path, { low: "", high: "", text: "" }));
                setOther("");
              }}
            >
              Add
            </button>
          </div>
        </fieldset>
        {elsewhere.map((problem) => (
          <p key={problem} className="failed" role="alert">
            {problem}
          </p>
        ))}
        <div className="dialog-foot">
          <button type="button" className="button" onClick={onClose}>
            Leave it
          </button>
          <button type="submit" className="button primary" disabled={wanted === null || wider.unreadable.length > 0 || extend.isPending}>
            {extend.isPending ? `Queueing${ELLIPSIS}` : count === 0 ? "Extend" : `Extend and widen ${count} ${count === 1 ? "domain" : "domains"}`}
          </button>
        </div>
      </form>
    </Modal>
  );
}
