/** Colour scales of heatmaps: 256 entries, looked up by index. */

import type { Theme } from "../lib/theme";

export type Rgb = readonly [number, number, number];

/** Everything a heatmap needs to colour a number and to draw its colour bar. */
export interface ColourScale {
  readonly low: number;
  readonly high: number;
  /** 256 * 3 bytes. */
  readonly table: Uint8Array;
}

const ENTRIES = 256;

const DIVERGING: Readonly<Record<Theme, readonly Rgb[]>> = {
  light: [[8, 69, 148], [33, 113, 181], [107, 174, 214], [198, 219, 239], [247, 247, 245], [253, 208, 162], [253, 141, 60], [217, 72, 1], [127, 39, 4]],
  dark: [[158, 214, 255], [86, 170, 230], [42, 113, 172], [34, 68, 102], [38, 43, 50], [104, 62, 28], [178, 92, 22], [236, 140, 52], [255, 200, 140]],
};

/** Exactly zero tokens: not "very low" but its own colour, with a cross. */
export const DEAD: Rgb = [204, 0, 136];

function fill(colourAt: (t: number) => Rgb): Uint8Array {
  const table = new Uint8Array(ENTRIES * 3);
  for (let index = 0; index < ENTRIES; index += 1) table.set(colourAt(index / (ENTRIES - 1)), index * 3);
  return table;
}

function byte(value: number): number {
  return Math.max(0, Math.min(255, Math.round(value)));
}

/** Cividis, readable with every kind of colour vision. Polynomial fit as in d3-scale-chromatic 3.1 (ISC). */
export function cividis(t: number): Rgb {
  return [
    byte(-4.54 - t * (35.34 - t * (2381.73 - t * (6402.7 - t * (7024.72 - t * 2710.57))))),
    byte(32.49 + t * (170.73 + t * (52.82 - t * (131.46 - t * (176.58 - t * 67.37))))),
    byte(81.24 + t * (442.36 - t * (2482.43 - t * (6167.24 - t * (6614.94 - t * 2475.67))))),
  ];
}

function along(stops: readonly Rgb[], t: number): Rgb {
  const place = t * (stops.length - 1);
  const index = Math.min(Math.floor(place), stops.length - 2);
  const share = place - index;
  const from = stops[index] ?? DEAD;
  const to = stops[index + 1] ?? DEAD;
  return [0, 1, 2].map((channel) => byte((from[channel] ?? 0) * (1 - share) + (to[channel] ?? 0) * share)) as unknown as Rgb;
}

/** A scale for a statistic between `low` and `high`. In the dark the same scale: cividis reads on both. */
export function sequentialScale(low: number, high: number): ColourScale {
  return { low, high: high > low ? high : low + 1, table: fill(cividis) };
}

/** A scale from -limit over a neutral 0 to +limit: blue below, orange above. */
export function divergingScale(limit: number, theme: Theme): ColourScale {
  return { low: -limit, high: limit, table: fill((t) => along(DIVERGING[theme], t)) };
}

/** The table index of a value, clamped to the ends of the scale. */
export function tableIndex(scale: ColourScale, value: number): number {
  const share = (value - scale.low) / (scale.high - scale.low);
  return Math.max(0, Math.min(ENTRIES - 1, Math.round(share * (ENTRIES - 1))));
}

/** The colour of a value. */
export function colourOf(scale: ColourScale, value: number): Rgb {
  const at = tableIndex(scale, value) * 3;
  return [scale.table[at] ?? 0, scale.table[at + 1] ?? 0, scale.table[at + 2] ?? 0];
}

/** RGBA pixels of a matrix, one per cell; cells that are not finite stay transparent, cells in `dead` are magenta. */
export function paint(values: ArrayLike<number>, scale: ColourScale, dead?: ArrayLike<number>): Uint8ClampedArray<ArrayBuffer> {
  const pixels = new Uint8ClampedArray(values.length * 4);
  for (let cell = 0; cell < values.length; cell += 1) {
    const value = values[cell] ?? Number.NaN;
    const at = cell * 4;
    if (dead?.[cell] === 1) {
      pixels.set([...DEAD, 255], at);
    } else if (Number.isFinite(value)) {
      const entry = tableIndex(scale, value) * 3;
      pixels[at] = scale.table[entry] ?? 0;
      pixels[at + 1] = scale.table[entry + 1] ?? 0;
      pixels[at + 2] = scale.table[entry + 2] ?? 0;
      pixels[at + 3] = 255;
    }
  }
  return pixels;
}
