/** The routing probe's metrics: which there are, and which are their controls. */

import type { Schemas } from "../api/client";
import { median } from "../charts/lines";
import { lowerBound } from "../charts/ranges";
import type { Catalogue } from "./metrics";

/** A metric of the probe with the controls that say what routing without any meaning would give. */
export interface Probe {
  readonly key: string;
  readonly name: string;
  readonly uniform: string | null;
  readonly shuffled: string | null;
}

// What is asked first comes first; whatever else the catalogue has follows.
const NAMES: Readonly<Record<string, string>> = {
  "probe/churn": "churn",
  "probe/top1_churn": "top-1 churn",
  "saturation/overlap": "saturation",
  "probe/domain_specialization": "domains",
  "probe/vocabulary_specialization": "vocabulary",
  "probe/coactivation": "co-activation",
  "probe/domain_information": "domain information",
  "probe/max_violation": "MaxVio",
};
const PREFIX = "probe/";
const CONTROL = /_(uniform|shuffled)$/;
// Both kinds of specialisation have the same share under even routing.
const SHARED_UNIFORM = "probe/specialization_uniform";

/** Known at the end of a run only, and in its summary: each evaluation is compared with the last one. */
export const SATURATION = "saturation/overlap";

/** The probe's metrics in the catalogue with their controls. */
export function probesOf(catalogue: Catalogue): Probe[] {
  const known = [...catalogue.keys()].filter((key) => key.startsWith(PREFIX) || key === SATURATION);
  const control = (key: string): string | null => (catalogue.has(key) ? key : null);
  const ordered = [...Object.keys(NAMES).filter((key) => known.includes(key)), ...known.filter((key) => NAMES[key] === undefined && !CONTROL.test(key))];
  return ordered.map((key) => ({
    key,
    name: NAMES[key] ?? key.slice(PREFIX.length).replaceAll("_", " "),
    uniform: key === SATURATION ? `${SATURATION}_uniform` : control(`${key}_uniform`) ?? (key.endsWith("_specialization") ? control(SHARED_UNIFORM) : null),
    shuffled: control(`${key}_shuffled`),
  }));
}

/** Every series that the probes need, controls included. */
export function probeKeys(probes: readonly Probe[]): string[] {
  return [...new Set(probes.filter(({ key }) => key !== SATURATION).flatMap(({ key, uniform, shuffled }) => [key, uniform, shuffled].filter((name) => name !== null)))];
}

type Item = Pick<Schemas["SeriesItem"], "key" | "layer" | "last">;

/** The curves of one series by layer, first to last. */
export function byLayer<T extends Item>(items: readonly T[], key: string | null): T[] {
  return items.filter((item) => item.key === key).sort((a, b) => (a.layer ?? 0) - (b.layer ?? 0));
}

/** At each place of the grid the reduction of all curves that have a value there. */
export function acrossLayers(items: readonly Item[], reduce: "highest" | "median" | "lowest"): (number | null)[] {
  const places = items[0]?.last.length ?? 0;
  return Array.from({ length: places }, (_, place) => {
    const values = items.map((item) => item.last[place] ?? null).filter((value) => value !== null);
    if (values.length === 0) return null;
    return reduce === "highest" ? Math.max(...values) : reduce === "lowest" ? Math.min(...values) : median(values);
  });
}

/** The newest value of each layer; layers without one are left out. */
export function newestByLayer(items: readonly Item[]): { readonly layer: number; readonly value: number }[] {
  return items.flatMap(({ layer, last }) => {
    const value = last.findLast((candidate) => candidate !== null);
    return layer === null || value === undefined || value === null ? [] : [{ layer, value }];
  });
}

interface SaturationAt {
  readonly step: number;
  readonly by_layer: readonly number[];
}

interface Gridded {
  readonly grid: readonly number[];
  readonly items: readonly Item[];
}

/**
 * The answer with the run's saturation beside the series, and with what even routing would give: one curve per MoE layer
 * in the order of `layers`, at the places of the grid where the evaluations are. `even` is top_k / num_experts.
 */
export function withSaturation<T extends Gridded>(series: T, points: readonly SaturationAt[], layers: readonly number[], even: number | null): T {
  if (points.length === 0) return series;
  const place = new Map(points.map(({ step }, index) => [lowerBound(series.grid, step), index]));
  const curve = (value: (index: number) => number | null): (number | null)[] =>
    series.grid.map((_, at) => {
      const index = place.get(at);
      return index === undefined ? null : value(index);
    });
  const item = (key: string, layer: number, last: (number | null)[]): Record<string, unknown> => ({ ...series.items[0], key, layer, domain: null, last, min: last, max: last, num_nonfinite: 0 });
  const added = layers.flatMap((layer, row) => [
    item(SATURATION, layer, curve((index) => points[index]?.by_layer[row] ?? null)),
    ...(even === null ? [] : [item(`${SATURATION}_uniform`, layer, curve(() => even))]),
  ]);
  return { ...series, items: [...series.items, ...added] };
}
