/** Buttons that command experiments or trials, one or several: those that change something, and what was refused. */

import { useState } from "react";

import { useExperimentVerb, useTrialVerb } from "../api/commands";
import { ConfirmDialog, Modal } from "../components/Dialogs";
import { experimentVerbs, hasEnded, priorityOf, trialVerbs, type ExperimentVerb, type TrialVerb } from "../lib/control";
import { ELLIPSIS } from "../lib/glyphs";
import { countOf, EXPERIMENT_WORDS, refusals, TRIAL_WORDS } from "./commandWords";

const VERBS: readonly ExperimentVerb[] = ["pause", "resume", "cancel", "kill"];
const TRIAL_VERBS: readonly TrialVerb[] = ["stop", "retry"];

/** What a command needs to know of an experiment. */
export interface Commanded {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly priority: number;
}

function Refusals({ messages }: { readonly messages: readonly string[] }): React.JSX.Element | null {
  if (messages.length === 0) return null;
  return (
    <ul className="failed command-refusals" role="alert">
      {messages.map((message) => (
        <li key={message}>{message}</li>
      ))}
    </ul>
  );
}

function PriorityDialog({ experiments, onSet, onClose }: { readonly experiments: readonly Commanded[]; readonly onSet: (priority: number) => void; readonly onClose: () => void }): React.JSX.Element {
  const [text, setText] = useState(String(experiments[0]?.priority ?? 0));
  const priority = priorityOf(text);
  return (
    <Modal title={`Priority of ${experiments.length === 1 ? (experiments[0]?.name ?? "") : countOf(experiments.length, "experiment")}`} onClose={onClose}>
      <p className="muted">Of all that waits, higher priorities start first. What runs already is left alone.</p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (priority !== null) {
            onSet(priority);
            onClose();
          }
        }}
      >
        <label>
          Priority, from {"\u2212"}100 to 100 (0 where nothing was said)
          <input type="number" min={-100} max={100} step={1} value={text} autoFocus onChange={(event) => setText(event.target.value)} aria-invalid={priority === null} />
        </label>
        <div className="dialog-foot">
          <button type="button" className="button" onClick={onClose}>
            Leave it
          </button>
          <button type="submit" className="button primary" disabled={priority === null}>
            Set
          </button>
        </div>
      </form>
    </Modal>
  );
}

interface ExperimentProps {
  readonly experiments: readonly Commanded[];
  /** Several: each button says how many it is about. */
  readonly bulk?: boolean;
  readonly onDone?: () => void;
}

/** Pause, resume, cancel, kill, priority. */
export function ExperimentCommands({ experiments, bulk = false, onDone }: ExperimentProps): React.JSX.Element {
  const command = useExperimentVerb();
  const [asking, setAsking] = useState<ExperimentVerb | "prioritize" | null>(null);
  const [refused, setRefused] = useState<readonly string[]>([]);
  const able = (verb: ExperimentVerb): readonly Commanded[] => experiments.filter(({ state }) => experimentVerbs(state).includes(verb));
  const open = experiments.filter(({ state }) => !hasEnded(state));
  const send = (verb: ExperimentVerb | "prioritize", about: readonly Commanded[], priority?: number): void => {
    command.mutate(
      { ids: about.map(({ id }) => id), verb, ...(priority === undefined ? {} : { priority }) },
      {
        onSuccess: (outcomes) => {
          setRefused(refusals(about.map(({ name }) => name), outcomes));
          onDone?.();
        },
        onError: (error) => setRefused([error.message]),
      },
    );
  };
  const about = asking === null || asking === "prioritize" ? open : able(asking);
  const whom = about.length === 1 ? (about[0]?.name ?? "") : countOf(about.length, "experiment");
  return (
    <>
      {VERBS.filter((verb) => able(verb).length > 0).map((verb) => (
        <button key={verb} type="button" className="button" disabled={command.isPending} onClick={() => (EXPERIMENT_WORDS[verb].question === null ? send(verb, able(verb)) : setAsking(verb))}>
          {EXPERIMENT_WORDS[verb].name}
          {bulk && ` ${able(verb).length}`}
          {EXPERIMENT_WORDS[verb].question !== null && ELLIPSIS}
        </button>
      ))}
      {open.length > 0 && (
        <button type="button" className="button" disabled={command.isPending} onClick={() => setAsking("prioritize")}>
          Priority{!bulk && open[0]?.priority !== 0 ? ` ${open[0]?.priority ?? 0}` : ""}
          {ELLIPSIS}
        </button>
      )}
      <Refusals messages={refused} />
      {asking === "prioritize" && <PriorityDialog experiments={open} onSet={(priority) => send("prioritize", open, priority)} onClose={() => setAsking(null)} />}
      {asking !== null && asking !== "prioritize" && (
        <ConfirmDialog
          title={`${EXPERIMENT_WORDS[asking].name} ${whom}?`}
          confirm={`${EXPERIMENT_WORDS[asking].name} ${about.length === 1 ? "the experiment" : countOf(about.length, "experiment")}`}
          onConfirm={() => send(asking, about)}
          onClose={() => setAsking(null)}
        >
          {about.length > 1 && <p className="muted">{about.map(({ name }) => name).join(", ")}</p>}
          <p>{EXPERIMENT_WORDS[asking].question}</p>
        </ConfirmDialog>
      )}
    </>
  );
}

interface TrialProps {
  readonly trials: readonly { readonly id: string; readonly name: string; readonly state: string; readonly retried_by?: string | null }[];
  readonly experimentState: string;
  readonly bulk?: boolean;
  readonly onDone?: (outcomes: readonly { readonly trial_id?: string | null }[]) => void;
}

/** Stop, try again. */
export function TrialCommands({ trials, experimentState, bulk = false, onDone }: TrialProps): React.JSX.Element {
  const command = useTrialVerb();
  const [asking, setAsking] = useState<TrialVerb | null>(null);
  const [refused, setRefused] = useState<readonly string[]>([]);
  const able = (verb: TrialVerb): TrialProps["trials"] => trials.filter((trial) => trialVerbs(trial, experimentState).includes(verb));
  const send = (verb: TrialVerb): void => {
    const about = able(verb);
    command.mutate(
      { ids: about.map(({ id }) => id), verb },
      {
        onSuccess: (outcomes) => {
          setRefused(refusals(about.map(({ name }) => name), outcomes));
          onDone?.(outcomes);
        },
        onError: (error) => setRefused([error.message]),
      },
    );
  };
  const about = asking === null ? [] : able(asking);
  return (
    <>
      {TRIAL_VERBS.filter((verb) => able(verb).length > 0).map((verb) => (
        <button key={verb} type="button" className="button" disabled={command.isPending} onClick={() => (TRIAL_WORDS[verb].question === null ? send(verb) : setAsking(verb))}>
          {TRIAL_WORDS[verb].name}
          {bulk && ` ${able(verb).length}`}
          {TRIAL_WORDS[verb].question !== null && ELLIPSIS}
        </button>
      ))}
      <Refusals messages={refused} />
      {asking !== null && (
        <ConfirmDialog
          title={`${TRIAL_WORDS[asking].name} ${about.length === 1 ? (about[0]?.name ?? "") : countOf(about.length, "trial")}?`}
          confirm={`${TRIAL_WORDS[asking].name} ${about.length === 1 ? "the trial" : countOf(about.length, "trial")}`}
          onConfirm={() => send(asking)}
          onClose={() => setAsking(null)}
        >
          {about.length > 1 && <p className="muted">{about.map(({ name }) => name).join(", ")}</p>}
          <p>{TRIAL_WORDS[asking].question}</p>
        </ConfirmDialog>
      )}
    </>
  );
}
