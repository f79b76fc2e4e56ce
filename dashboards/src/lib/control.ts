/** What may be asked of an experiment or a trial in its state. The API decides; this only leaves out what it would refuse. */

export type ExperimentVerb = "pause" | "resume" | "cancel" | "kill";
export type TrialVerb = "stop" | "retry";

const EXPERIMENT_VERBS: Readonly<Record<string, readonly ExperimentVerb[]>> = {
  queued: ["pause", "cancel", "kill"],
  running: ["pause", "cancel", "kill"],
  pausing: ["resume", "cancel", "kill"],
  paused: ["resume", "cancel", "kill"],
  cancelling: ["kill"],
};

/** The verbs that change something in this state. */
export function experimentVerbs(state: string): readonly ExperimentVerb[] {
  return EXPERIMENT_VERBS[state] ?? [];
}

/** Whether the experiment is over. More trials, or a trial tried again, would queue it once more. */
export function hasEnded(state: string): boolean {
  return state === "completed" || state === "failed" || state === "cancelled";
}

/** The verbs that change something for a trial of an experiment. */
export function trialVerbs(trial: { readonly state: string; readonly retried_by?: string | null }, experimentState: string): readonly TrialVerb[] {
  if (experimentState === "cancelling") return [];
  if (["queued", "running", "retrying"].includes(trial.state)) return ["stop"];
  return trial.state === "failed" && (trial.retried_by ?? null) === null ? ["retry"] : [];
}

/** The whole number of a priority that was typed, or null if it is none that the API takes. */
export function priorityOf(text: string): number | null {
  const value = /^[-+]?\d+$/.test(text.trim()) ? Number(text) : Number.NaN;
  return Number.isInteger(value) && value >= -100 && value <= 100 ? value : null;
}
