/** From a common grid with holes to lines: what joins up and what is a gap. */

import type { Line } from "./ranges";

/** Values of one curve on a grid shared with other curves; null where this curve has none. */
export interface GridValues {
  readonly grid: readonly number[];
  readonly last: readonly (number | null)[];
  readonly min?: readonly (number | null)[];
  readonly max?: readonly (number | null)[];
  /** The grid is every recorded x, not buckets. */
  readonly raw?: boolean;
}

// A hole this many times wider than the curve's usual spacing is missing data; narrower ones only come from sharing the
// grid with curves that have more rows. Buckets add up to one bucket of jitter to the spacing, recorded values none.
const GAP = { raw: 1.5, buckets: 3 } as const;

/**
 * The line of one curve: grid places where it has no value are dropped, except that one null marks each real gap.
 * With `sparse`, every two neighbours are joined (evaluations are points in time, not samples of a stream).
 */
export function lineOf(values: GridValues, sparse = false): Line {
  const x: number[] = [];
  const y: (number | null)[] = [];
  const low: (number | null)[] = [];
  const high: (number | null)[] = [];
  const places: number[] = [];
  values.last.forEach((value, place) => {
    if (value !== null) places.push(place);
  });
  const at = (place: number): number => values.grid[place] ?? Number.NaN;
  const spacings = places.slice(1).map((place, index) => at(place) - at(places[index] ?? place));
  const usual = median(spacings);
  places.forEach((place, index) => {
    const before = places[index - 1];
    if (!sparse && before !== undefined && place - before > 1 && at(place) - at(before) > (values.raw === true ? GAP.raw : GAP.buckets) * usual) {
      x.push(at(before + 1));
      y.push(null);
      low.push(null);
      high.push(null);
    }
    x.push(at(place));
    y.push(values.last[place] ?? null);
    low.push(values.min?.[place] ?? values.last[place] ?? null);
    high.push(values.max?.[place] ?? values.last[place] ?? null);
  });
  const reduced = low.some((value, index) => value !== high[index]);
  return reduced ? { x, y, low, high } : { x, y };
}

/** The middle of the values, NaN of none. */
export function median(values: readonly number[]): number {
  if (values.length === 0) return Number.NaN;
  const ordered = [...values].sort((a, b) => a - b);
  const half = ordered.length >> 1;
  return ordered.length % 2 === 1 ? (ordered[half] ?? Number.NaN) : ((ordered[half - 1] ?? 0) + (ordered[half] ?? 0)) / 2;
}

/** The last value of a line that is a number, with its x. */
export function lastPoint(line: Line): readonly [number, number] | null {
  for (let index = line.y.length - 1; index >= 0; index -= 1) {
    const value = line.y[index];
    if (value !== null && value !== undefined) return [line.x[index] ?? Number.NaN, value];
  }
  return null;
}

/** Comma-separated table of lines: every x that any line has, one column per line. */
export function linesToCsv(xName: string, lines: readonly (Line & { readonly label: string })[]): string {
  const rows = new Map<number, (number | null)[]>();
  lines.forEach((line, column) => {
    line.x.forEach((x, index) => {
      const value = line.y[index] ?? null;
      if (value === null) return;
      const row = rows.get(x) ?? new Array<number | null>(lines.length).fill(null);
      row[column] = value;
      rows.set(x, row);
    });
  });
  const quote = (text: string): string => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const head = [xName, ...lines.map((line) => line.label)].map(quote).join(",");
  const body = [...rows].sort(([a], [b]) => a - b).map(([x, row]) => [x, ...row.map((value) => value ?? "")].join(","));
  return `${[head, ...body].join("\n")}\n`;
}
