/** A trial of a point of the reader's own: one field per parameter of the space. */

import { useRef, useState } from "react";

import { freshKey, useAddTrial } from "../api/commands";
import { Modal } from "../components/Dialogs";
import { formatNumber, formatSetting } from "../lib/format";
import { fieldOf, parseValue } from "../lib/fork";
import { ELLIPSIS } from "../lib/glyphs";
import { activeParameters, spaceParameters, type SpaceParameter } from "../lib/space";

interface Props {
  readonly experimentId: string;
  readonly space: Readonly<Record<string, unknown>>;
  /** Shown at first, e.g. those of the best trial. */
  readonly params: Readonly<Record<string, unknown>>;
  readonly onClose: () => void;
  readonly onAdded: (trialId: string) => void;
}

function startingPoint(parameters: readonly SpaceParameter[], params: Props["params"]): Record<string, unknown> {
  return Object.fromEntries(parameters.map(({ name, values, low }) => [name, params[name] ?? (values.length > 0 ? values[0] : low)]));
}

function hintOf({ kind, low, high }: SpaceParameter): string {
  // What is left out of a point is drawn by the API.
  return low === null || high === null ? "" : `Empty: drawn at random. ${kind === "int" ? "Whole number" : "Number"} from ${formatNumber(low, 3)} to ${formatNumber(high, 3)} in the search`;
}

export function AddTrialDialog({ experimentId, space, params, onClose, onAdded }: Props): React.JSX.Element {
  const add = useAddTrial(experimentId);
  const parameters = spaceParameters(space);
  const [point, setPoint] = useState(() => startingPoint(parameters, params));
  const [texts, setTexts] = useState<Readonly<Record<string, string>>>({});
  const [label, setLabel] = useState("");
  const wish = useRef({ body: "", key: "" });
  const active = activeParameters(parameters, point);
  const problems = new Map((add.error?.errors ?? []).map((error) => [fieldOf(error.pointer).replace(/^params\\./, ""), error.message]));
  const elsewhere = add.error === null ? [] : add.error.errors.length === 0 ? [add.error.message] : [...problems].filter(([field]) => !active.some(({ name }) => name === field)).map(([field, message]) => `${field}: ${message}`);
  const submit = (): void => {
    const body = { params: Object.fromEntries(active.filter(({ name, values }) => values.length > 0 || (point[name] ?? null) !== null).map(({ name }) => [name, point[name] as never])), label: label.trim() === "" ? null : label.trim() };
    const text = JSON.stringify(body);
    if (text !== wish.current.body) wish.current = { body: text, key: freshKey() };
    add.mutate({ body, key: wish.current.key }, { onSuccess: (trial) => onAdded(trial.id) });
  };
  return (
    <Modal title="Add a trial" onClose={onClose}>
      <p className="muted">It runs beside the search and is never stopped early; the sampler and the scheduler do not learn from it. An experiment that has ended is queued again for it.</p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          submit();
        }}
      >
        {active.map((parameter) => (
          <label key={parameter.name}>
            <span className="mono">{parameter.name}</span>
            {parameter.values.length > 0 ? (
              <select
                value={parameter.values.findIndex((value) => JSON.stringify(value) === JSON.stringify(point[parameter.name]))}
                onChange={(event) => setPoint({ ...point, [parameter.name]: parameter.values[Number(event.target.value)] })}
              >
                {parameter.values.map((value, index) => (
                  <option key={index} value={index}>
                    {formatSetting(value)}
                  </option>
                ))}
              </select>
            ) : (
              <input
                value={texts[parameter.name] ?? String(point[parameter.name] ?? "")}
                inputMode="decimal"
                aria-invalid={problems.has(parameter.name)}
                onChange={(event) => {
                  setTexts({ ...texts, [parameter.name]: event.target.value });
                  setPoint({ ...point, [parameter.name]: parseValue(event.target.value) });
                }}
              />
            )}
            {parameter.values.length === 0 && <span className="sub">{hintOf(parameter)}</span>}
            {problems.has(parameter.name) && (
              <span className="field-problem" role="alert">
                {problems.get(parameter.name)}
              </span>
            )}
          </label>
        ))}
        <label>
          Label
          <input value={label} maxLength={80} placeholder="none" onChange={(event) => setLabel(event.target.value)} />
        </label>
        {elsewhere.map((message) => (
          <p key={message} className="failed" role="alert">
            {message}
          </p>
        ))}
        <div className="dialog-foot">
          <button type="button" className="button" onClick={onClose}>
            Do not add
          </button>
          <button type="submit" className="button primary" disabled={add.isPending}>
            {add.isPending ? `Adding${ELLIPSIS}` : "Add the trial"}
          </button>
        </div>
      </form>
    </Modal>
  );
}
