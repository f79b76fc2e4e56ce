/** What trials are called and what tells them apart. */

import type { Schemas } from "../api/client";
import { differences, flatten, shortNames } from "./configuration";
import { formatSetting } from "./format";
import { DOT } from "./glyphs";

type Named = Pick<Schemas["TrialRead"], "number" | "kind" | "label"> & { readonly replica?: number | null };

/** The trial's name: a baseline's own, or what it was added as, else its number. */
export function trialName(trial: Named): string {
  if (trial.kind === "added" && trial.label !== null) return `${trial.label} (trial ${trial.number})`;
  if (trial.kind !== "baseline") return `trial ${trial.number}`;
  // A baseline tried with several seeds is several trials of one name.
  return `${trial.label ?? `baseline ${trial.number}`}${trial.replica == null ? "" : `, seed ${trial.replica}`}`;
}

/** One parameter that is not the same in all trials. */
export interface Parameter {
  readonly path: string;
  readonly name: string;
}

/** The proposed parameters on which the search trials differ, with the shortest names that tell them apart. */
export function differingParameters(trials: readonly (Named & { readonly params: Readonly<Record<string, unknown>> })[]): Parameter[] {
  const searched = trials.filter((trial) => trial.kind !== "baseline");
  // A single trial differs from nothing yet; what was proposed for it is of interest all the same.
  const paths = searched.length === 1 ? Object.keys(searched[0]?.params ?? {}) : differences(searched.map((trial) => trial.params)).map((row) => row.path);
  const names = shortNames(paths);
  return paths.map((path) => ({ path, name: names.get(path) ?? path }));
}

/** Name and the values of the parameters that differ: what a legend says. */
export function trialLabel(trial: Named & { readonly params: Readonly<Record<string, unknown>> }, parameters: readonly Parameter[], most = 3): string {
  const values = parameters
    .filter(({ path }) => trial.params[path] !== undefined && trial.params[path] !== null)
    .slice(0, most)
    .map(({ path, name }) => `${name}=${formatSetting(trial.params[path])}`);
  return [trialName(trial), ...values].join(` ${DOT} `);
}

/** How its curve ends: what its last point is marked with. */
export function endMark(state: Schemas["TrialState"]): "cut" | "failed" | "open" | undefined {
  if (state === "pruned" || state === "cancelled") return "cut";
  if (state === "failed") return "failed";
  return state === "running" || state === "retrying" ? "open" : undefined;
}

/** Dotted path -> value of a baseline: the base configuration with what the baseline sets. Empty for trials of the search. */
export function baselineSettings(spec: Pick<Schemas["ExperimentSpec"], "base" | "baselines">, trial: Named): ReadonlyMap<string, unknown> {
  const baseline = trial.kind === "baseline" ? spec.baselines.find((candidate) => candidate.name === trial.label) : undefined;
  if (baseline === undefined) return new Map();
  const settings = flatten(spec.base);
  for (const [path, value] of Object.entries(baseline.set)) {
    for (const known of [...settings.keys()]) if (known === path || known.startsWith(`${path}.`)) settings.delete(known);
    settings.set(path, value);
  }
  return settings;
}

/** Whether any two of the configurations are equal but for their seed: only then is anything known of seed noise. */
export function haveReplicas(configs: readonly unknown[]): boolean {
  const keys = configs.flatMap((config) => {
    if (config === null) return [];
    const settings = flatten(config);
    settings.delete("seed");
    return [JSON.stringify([...settings])];
  });
  return new Set(keys).size < keys.length;
}
