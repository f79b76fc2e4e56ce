/** Trials of an experiment with several objectives as points over two of them. */

import type { Schemas } from "../api/client";
import { formatCount, formatNumber } from "../lib/format";
import { metricName } from "./metrics";

/** One of the objectives, the first one included. */
export interface Aim {
  readonly name: string;
  readonly better: "lower" | "higher";
}

interface Judged {
  readonly metric: string;
  readonly domain?: string | undefined;
  readonly direction?: "minimize" | "maximize" | undefined;
}

const FIGURES: Readonly<Record<string, string>> = {
  final_loss: "final training loss",
  num_spikes: "spikes",
  tokens_per_s: "tokens/s",
  training_duration_s: "training time (s)",
  flops_per_token: "FLOPs per token",
  active_parameters: "active parameters",
  total_parameters: "total parameters",
};

/** Every objective of a spec, the first one first. */
export function aimsOf(spec: { readonly objective?: unknown; readonly further_objectives?: unknown }): Aim[] {
  const further = Array.isArray(spec.further_objectives) ? (spec.further_objectives as Judged[]) : [];
  return [spec.objective as Judged, ...further].map(({ metric, domain, direction }) => ({
    name: `${FIGURES[metric] ?? metricName(metric)}${domain === undefined || domain === "all" ? "" : `, ${domain}`}`,
    better: direction === "maximize" ? "higher" : "lower",
  }));
}

/** A value as the front's table writes it: large counts with their letter. */
export function writeValue(value: number | null | undefined): string {
  return value != null && Math.abs(value) >= 1e4 ? formatCount(value) : formatNumber(value);
}

type Row = Pick<Schemas["ComparisonRow"], "objective" | "further_values">;

/** A trial's value of each objective; null where it has none. */
export function valuesOf({ objective, further_values: further }: Row): (number | null)[] {
  return [objective, ...(further ?? [])];
}
