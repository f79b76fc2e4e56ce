/** What part of the y axis a line chart shows, and what that leaves out. */

/** One line as numbers. `low` and `high` are the extremes behind each drawn value, where values were reduced. */
export interface Line {
  readonly x: readonly number[];
  readonly y: readonly (number | null)[];
  readonly low?: readonly (number | null)[] | undefined;
  readonly high?: readonly (number | null)[] | undefined;
}

export interface Focus {
  readonly low: number;
  readonly high: number;
  /** Drawn points above and below the range. */
  readonly above: number;
  readonly below: number;
}

/** The smallest and largest x of all lines with room around a single one, or null if there is no point. */
export function xExtent(lines: readonly Line[]): readonly [number, number] | null {
  let low = Infinity;
  let high = -Infinity;
  for (const line of lines) {
    for (const x of line.x) {
      if (x < low) low = x;
      if (x > high) high = x;
    }
  }
  if (low > high) return null;
  if (low < high) return [low, high];
  const room = Math.abs(low) * 0.1 || 1;
  return [low - room, high + room];
}

/**
 * The range of y after the warm-up: values at the first `warmup` of the visible x are not asked, so that the steep start
 * does not flatten all that follows. Points left out are counted, for the chart says so and can show them.
 */
export function focusRange(lines: readonly Line[], xLow: number, xHigh: number, warmup: number): Focus | null {
  const start = xLow + (xHigh - xLow) * warmup;
  let low = Infinity;
  let high = -Infinity;
  const visit = (act: (x: number, bottom: number, top: number) => void): void => {
    for (const line of lines) {
      for (let index = 0; index < line.x.length; index += 1) {
        const x = line.x[index] ?? Number.NaN;
        const value = line.y[index];
        if (value === null || value === undefined || !Number.isFinite(value) || x < xLow || x > xHigh) continue;
        act(x, line.low?.[index] ?? value, line.high?.[index] ?? value);
      }
    }
  };
  visit((x, bottom, top) => {
    if (x < start) return;
    low = Math.min(low, bottom);
    high = Math.max(high, top);
  });
  if (low > high) {
    visit((_, bottom, top) => {
      low = Math.min(low, bottom);
      high = Math.max(high, top);
    });
  }
  if (low > high) return null;
  const margin = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
  low -= margin;
  high += margin;
  let above = 0;
  let below = 0;
  visit((_, bottom, top) => {
    if (top > high) above += 1;
    if (bottom < low) below += 1;
  });
  return { low, high, above, below };
}

/** Place of the first element of the ascending list that is not below `value`. */
export function lowerBound(ascending: readonly number[], value: number): number {
  let from = 0;
  let to = ascending.length;
  while (from < to) {
    const middle = (from + to) >> 1;
    if ((ascending[middle] ?? 0) < value) from = middle + 1;
    else to = middle;
  }
  return from;
}

/** Place of the element of the ascending list nearest to `value`; -1 of an empty list. */
export function nearestIndex(ascending: readonly number[], value: number): number {
  const after = lowerBound(ascending, value);
  if (after === 0) return ascending.length === 0 ? -1 : 0;
  if (after === ascending.length) return after - 1;
  const before = after - 1;
  return value - (ascending[before] ?? 0) <= (ascending[after] ?? 0) - value ? before : after;
}

/** Round numbers within `low..high` of a logarithmic axis: powers of ten, with 2 and 5 times those where these are few. */
export function logTicks(low: number, high: number): number[] {
  const within = (multiples: readonly number[]): number[] => {
    const ticks: number[] = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const multiple of multiples) {
        const tick = Number((multiple * 10 ** power).toPrecision(3));
        if (tick >= low && tick <= high) ticks.push(tick);
      }
    }
    return ticks;
  };
  const powers = within([1]);
  return powers.length >= 3 ? powers : within([1, 2, 5]);
}

/** About `count` round numbers within `low..high`: multiples of 1, 2 or 5 times a power of ten. */
export function niceTicks(low: number, high: number, count: number): number[] {
  if (!(high > low) || count < 1) return Number.isFinite(low) ? [low] : [];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((multiple) => multiple * power >= rough * 0.999) ?? 10) * power;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  // Multiples of the step, not sums of it: 0.1 * 3 is nearer to 0.3 than 0.1 + 0.1 + 0.1, and rounding does the rest.
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}
