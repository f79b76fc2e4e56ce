/** The objective in words. */

import type { Schemas } from "../api/client";

type Objective = Schemas["Objective"];

/** "held-out bits per byte" of which corpus, and which way is better. */
export function objectiveName(objective: Objective): string {
  const metric = objective.metric === "eval/loss" ? "held-out loss" : "held-out bits per byte";
  const domain = objective.domain === undefined || objective.domain === "all" ? "mean over domains" : objective.domain;
  return `${metric} (${domain}), ${objective.direction === "maximize" ? "higher" : "lower"} is better`;
}

export function objectiveUnit(objective: Objective): string {
  return objective.metric === "eval/loss" ? "nats/token" : "bits/byte";
}

/** The class that colours a difference as gain or loss; nothing for none. */
export function differenceTone(difference: number | null, objective: Pick<Objective, "direction">): string {
  if (difference === null || Math.abs(difference) < 5e-4) return "";
  return difference < 0 === (objective.direction !== "maximize") ? "gain" : "loss";
}
