/** Layers of a router grid as numbers: the matrix to draw, the worst layer, the median layer. */

import type { Schemas } from "../api/client";
import { median } from "../charts/lines";
import type { RouterMetric } from "./metrics";

type Grid = Pick<Schemas["RouterGrid"], "layers" | "num_layers" | "grid" | "metrics">;

/** `[layer][grid]` of the end of the range that matters for the metric, null where nothing is known. */
export function worstOfBuckets(grid: Grid, metric: RouterMetric): readonly (readonly (number | null)[])[] {
  const found = grid.metrics.find((candidate) => candidate.key === metric.key);
  return found === undefined ? [] : found[metric.worst];
}

/** Row-major matrix over every layer of the model; dense layers and unknown buckets are NaN. */
export function layerMatrix(grid: Grid, metric: RouterMetric): Float64Array {
  const columns = grid.grid.length;
  const values = new Float64Array(grid.num_layers * columns).fill(Number.NaN);
  worstOfBuckets(grid, metric).forEach((row, index) => {
    const layer = grid.layers[index] ?? 0;
    row.forEach((value, column) => {
      if (value !== null) values[layer * columns + column] = value;
    });
  });
  return values;
}

/** The layer that is worst over the last tenth of what is recorded, with its mean there. */
export function worstLayer(grid: Grid, metric: RouterMetric): { readonly layer: number; readonly value: number } | null {
  const rows = worstOfBuckets(grid, metric);
  const tail = Math.max(1, Math.ceil(grid.grid.length / 10));
  let worst: { layer: number; value: number } | null = null;
  rows.forEach((row, index) => {
    const known = row.slice(-tail).filter((value): value is number => value !== null);
    if (known.length === 0) return;
    const value = known.reduce((sum, item) => sum + item, 0) / known.length;
    const worse = worst === null || (metric.worst === "max" ? value > worst.value : value < worst.value);
    if (worse) worst = { layer: grid.layers[index] ?? index, value };
  });
  return worst;
}

/** Over the grid: the worst of all layers, and the median layer. */
export function layerEnvelope(grid: Grid, metric: RouterMetric): { readonly worst: (number | null)[]; readonly median: (number | null)[] } {
  const rows = worstOfBuckets(grid, metric);
  const columns = grid.grid.map((_, column) => rows.map((row) => row[column] ?? null).filter((value): value is number => value !== null));
  return {
    worst: columns.map((values) => (values.length === 0 ? null : metric.worst === "max" ? Math.max(...values) : Math.min(...values))),
    median: columns.map((values) => (values.length === 0 ? null : median(values))),
  };
}
