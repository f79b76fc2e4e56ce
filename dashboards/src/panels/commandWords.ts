/** What becomes of an experiment or a trial on a command, in the words of its button and of the question before it. */

import type { ExperimentVerb, TrialVerb } from "../lib/control";

interface Words {
  readonly name: string;
  /** What is asked before it is done; null for what can be undone. */
  readonly question: string | null;
}

export const EXPERIMENT_WORDS: Readonly<Record<ExperimentVerb, Words>> = {
  pause: { name: "Pause", question: null },
  resume: { name: "Resume", question: null },
  cancel: {
    name: "Cancel",
    question: "Running trials write a checkpoint and stop; what has not stopped in time is ended. What is recorded stays; a cancelled experiment cannot be continued.",
  },
  kill: {
    name: "Kill",
    question: "Running trials end now, without a checkpoint: their steps since the last one are lost. What is recorded stays; the experiment cannot be continued.",
  },
};

export const TRIAL_WORDS: Readonly<Record<TrialVerb, Words>> = {
  stop: { name: "Stop", question: "The trial writes a checkpoint and ends as pruned, with what it has shown so far. One that never ran is cancelled. The search goes on." },
  retry: { name: "Try again", question: null },
};

/** `3 experiments`, `1 trial`. */
export function countOf(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

interface Outcome {
  readonly ok: boolean;
  readonly problem: { readonly detail: string } | null;
}

/** Why some of several commands were refused, one line each; empty if none was. */
export function refusals(names: readonly string[], outcomes: readonly Outcome[]): string[] {
  return outcomes.flatMap(({ ok, problem }, index) => (ok ? [] : [`${names[index] ?? "?"}: ${problem?.detail ?? "refused"}`]));
}
