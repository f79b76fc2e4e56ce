/** Metrics as panels name them; units and definitions come from the API's catalogue. */

import type { Schemas } from "../api/client";
import { unitSuffix } from "../lib/format";

const SHORT: Readonly<Record<string, string>> = {
  "train/loss": "training loss",
  "train/balancing_loss": "balancing loss",
  "optimizer/lr": "learning rate",
  "optimizer/grad_norm": "gradient norm",
  "eval/bits_per_byte": "held-out bits per byte",
  "eval/loss": "held-out loss",
  "router/max_violation": "MaxVio",
  "router/token_entropy": "token entropy",
  "router/load_entropy": "load entropy",
  "router/dead_fraction": "dead fraction",
  "router/z": "z",
  "router/max_load": "load share of the busiest expert",
  "router/effective_experts": "effective experts",
  "router/persistent_dead_fraction": "persistently dead fraction",
  "train/loss_rise": "loss above its minimum",
};

/** What to ask of each bucket and of the layers: the end of the range that a researcher worries about. */
export type Worst = "max" | "min";

export interface RouterMetric {
  readonly key: string;
  readonly name: string;
  readonly worst: Worst;
}

/** The statistics of the layer x time heatmap. */
export const ROUTER_METRICS: readonly RouterMetric[] = [
  { key: "router/max_violation", name: "MaxVio", worst: "max" },
  { key: "router/token_entropy", name: "token entropy", worst: "min" },
  { key: "router/load_entropy", name: "load entropy", worst: "min" },
  { key: "router/dead_fraction", name: "dead fraction", worst: "max" },
  { key: "router/z", name: "z", worst: "max" },
];

export type Catalogue = ReadonlyMap<string, Schemas["MetricRead"]>;

export function catalogueOf(catalog: Schemas["Catalog"] | undefined): Catalogue {
  return new Map((catalog?.metrics ?? []).map((metric) => [metric.name, metric]));
}

/** The name people use, or the catalogue's. */
export function metricName(key: string): string {
  return SHORT[key] ?? key;
}

/** Name and unit, as on an axis. */
export function axisName(key: string, catalogue: Catalogue): string {
  const name = metricName(key);
  return name.includes(" per ") ? name : name + unitSuffix(catalogue.get(key)?.unit);
}

/** The definition in one sentence, with its source. */
export function definition(key: string, catalogue: Catalogue): string {
  const metric = catalogue.get(key);
  if (metric === undefined) return "";
  return metric.source === null ? metric.description : `${metric.description} (${metric.source})`;
}
