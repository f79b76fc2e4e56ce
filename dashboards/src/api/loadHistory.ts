/** The binary history of expert loads: uint32 length, that many bytes of JSON, one byte per frame, layer and expert. */

import type { Schemas } from "./client";

export interface LoadHistory {
  readonly meta: Schemas["LoadHistoryMeta"];
  /** `[frame][layer][expert]`, see `decodeFrame`. */
  readonly codes: Uint8Array;
}

/** Splits the answer; throws if its length is not what its own header says. */
export function parseLoadHistory(buffer: ArrayBuffer): LoadHistory {
  const length = new DataView(buffer).getUint32(0, true);
  const meta = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))) as Schemas["LoadHistoryMeta"];
  const codes = new Uint8Array(buffer, 4 + length);
  const expected = meta.num_frames * meta.layers.length * meta.num_experts;
  if (codes.length !== expected) throw new Error(`load history has ${codes.length} bytes of loads, its header says ${expected}`);
  return { meta, codes };
}

/** log2(load / fair share) and dead cells of one frame, row-major over layers and experts. */
export function decodeFrame(history: LoadHistory, frame: number): { readonly values: Float64Array; readonly dead: Uint8Array } {
  const size = history.meta.layers.length * history.meta.num_experts;
  const values = new Float64Array(size);
  const dead = new Uint8Array(size);
  for (let cell = 0; cell < size; cell += 1) {
    const code = history.codes[frame * size + cell] ?? 0;
    if (code === 0) {
      dead[cell] = 1;
      values[cell] = Number.NaN;
    } else values[cell] = (code - 128) / 32;
  }
  return { values, dead };
}
