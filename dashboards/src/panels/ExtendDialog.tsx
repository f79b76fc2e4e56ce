/** More trials for an experiment that has ended. */

import { useState } from "react";

import type { Schemas } from "../api/client";
import { useExtend } from "../api/commands";
import { Modal } from "../components/Dialogs";
import { wholeNumber } from "../lib/address";
import { fieldOf } from "../lib/fork";
import { ELLIPSIS } from "../lib/glyphs";

interface Props {
  readonly experiment: Schemas["ExperimentDetail"];
  readonly onClose: () => void;
}

export function ExtendDialog({ experiment, onClose }: Props): React.JSX.Element {
  const extend = useExtend(experiment.id);
  const baselines = Array.isArray(experiment.spec.baselines) ? experiment.spec.baselines.length : 0;
  const made = Math.max(1, experiment.num_trials - baselines);
  const [text, setText] = useState(String(2 * made));
  const wanted = wholeNumber(text, made + 1);
  const problems = extend.error === null ? [] : extend.error.errors.length === 0 ? [extend.error.message] : extend.error.errors.map((error) => `${fieldOf(error.pointer)}: ${error.message}`);
  return (
    <Modal title={`Extend ${experiment.name}`} onClose={onClose}>
      <p className="muted">It is queued again and keeps its trials; the sampler learns from all of them. The space stays as it is; evenload extend --space takes a wider one.</p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (wanted !== null) extend.mutate({ num_trials: wanted, space: {} }, { onSuccess: onClose });
        }}
      >
        <label>
          Trials of the search in all (it has made {made})
          <input type="number" min={made + 1} step={1} value={text} autoFocus onChange={(event) => setText(event.target.value)} aria-invalid={wanted === null} />
        </label>
        {problems.map((problem) => (
          <p key={problem} className="failed" role="alert">
            {problem}
          </p>
        ))}
        <div className="dialog-foot">
          <button type="button" className="button" onClick={onClose}>
            Leave it
          </button>
          <button type="submit" className="button primary" disabled={wanted === null || extend.isPending}>
            {extend.isPending ? `Queueing${ELLIPSIS}` : "Extend"}
          </button>
        </div>
      </form>
    </Modal>
  );
}
