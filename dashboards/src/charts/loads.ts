/** Expert loads as pictures need them. */

/** log2 of each load over the fair share of its layer, and which cells are dead (exactly zero tokens). */
export interface RelativeLoads {
  readonly values: Float64Array;
  readonly dead: Uint8Array;
  /** Tokens per expert if all were equal, per layer. */
  readonly fair: readonly number[];
}

/** From counts, one list of experts per layer. A layer that saw no token is not known, not dead. */
export function relativeLoads(counts: readonly (readonly number[])[]): RelativeLoads {
  const width = counts[0]?.length ?? 0;
  const values = new Float64Array(counts.length * width).fill(Number.NaN);
  const dead = new Uint8Array(counts.length * width);
  const fair = counts.map((layer) => layer.reduce((sum, count) => sum + count, 0) / Math.max(1, layer.length));
  counts.forEach((layer, row) => {
    const share = fair[row] ?? 0;
    if (share === 0) return;
    layer.forEach((count, expert) => {
      const cell = row * width + expert;
      if (count === 0) dead[cell] = 1;
      else values[cell] = Math.log2(count / share);
    });
  });
  return { values, dead, fair };
}

/** Each layer's loads in falling order: what may be compared between independent runs, whose expert ids mean nothing. */
export function sortedProfile(layer: readonly number[]): number[] {
  const fair = layer.reduce((sum, count) => sum + count, 0) / Math.max(1, layer.length);
  return [...layer].sort((a, b) => b - a).map((count) => (fair === 0 ? Number.NaN : count / fair));
}

/** The experts of a layer in falling order of load; equal loads keep the order of index. */
export function orderByLoad(layer: readonly number[]): number[] {
  return layer.map((_, expert) => expert).sort((a, b) => (layer[b] ?? 0) - (layer[a] ?? 0) || a - b);
}
