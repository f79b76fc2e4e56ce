import { describe, expect, test } from "vitest";

import { decodeFrame, parseLoadHistory } from "../src/api/loadHistory";
import { idList, numberRange, oneOf, wholeNumber, writeRange } from "../src/lib/address";
import { sortRows } from "../src/components/SortableTable";
import { domainProgress } from "../src/panels/DomainsPanel";
import { columnOrder } from "../src/panels/ExpertsPanel";
import { differenceTone } from "../src/panels/objective";
import { layerEnvelope, layerMatrix, worstLayer } from "../src/panels/routerLayers";
import { layerAtSpike } from "../src/panels/SpikesPanel";

const MAXVIO = { key: "router/max_violation", name: "MaxVio", worst: "max" } as const;
const ENTROPY = { key: "router/token_entropy", name: "token entropy", worst: "min" } as const;

function grid(key: string, rows: (number | null)[][]) {
  return {
    layers: rows.map((_, index) => index + 1),
    num_layers: rows.length + 1,
    grid: (rows[0] ?? []).map((_, index) => index),
    metrics: [{ key, min: rows, last: rows, max: rows }],
  };
}

describe("router layers", () => {
  test("the worst layer is not hidden by a mean", () => {
    expect(worstLayer(grid(MAXVIO.key, [[0.1, 0.1], [0.1, 6]]), MAXVIO)).toEqual({ layer: 2, value: 6 });
    expect(worstLayer(grid(ENTROPY.key, [[2, 2], [2, 0.1]]), ENTROPY)).toEqual({ layer: 2, value: 0.1 });
    expect(worstLayer(grid(MAXVIO.key, [[null], [null]]), MAXVIO)).toBeNull();
  });
  test("dense layers are unknown, not zero", () => {
    expect([...layerMatrix(grid(MAXVIO.key, [[1, null]]), MAXVIO)]).toEqual([Number.NaN, Number.NaN, 1, Number.NaN]);
  });
  test("the envelope has the worst and the median of the layers that are known", () => {
    expect(layerEnvelope(grid(MAXVIO.key, [[1, null], [3, null], [2, 5]]), MAXVIO)).toEqual({ worst: [3, 5], median: [2, 5] });
  });
});

describe("load history", () => {
  function encode(codes: number[]): ArrayBuffer {
    const meta = { trial_id: "t", encoding: "u8-log2", num_frames: 1, steps: [1], tokens: [8], layers: [0], num_experts: 4, top_k: 1 };
    const head = new TextEncoder().encode(JSON.stringify(meta));
    const bytes = new Uint8Array(4 + head.length + codes.length);
    new DataView(bytes.buffer).setUint32(0, head.length, true);
    bytes.set(head, 4);
    bytes.set(codes, 4 + head.length);
    return bytes.buffer;
  }
  test("0 is dead, 128 the fair share, 32 codes a factor of two", () => {
    const { values, dead } = decodeFrame(parseLoadHistory(encode([0, 128, 160, 96])), 0);
    expect([...values]).toEqual([Number.NaN, 0, 1, -1]);
    expect([...dead]).toEqual([1, 0, 0, 0]);
  });
  test("an answer cut short is refused", () => {
    expect(() => parseLoadHistory(encode([0, 128]))).toThrow(/2 bytes/);
  });
  test("experts in order of load keep their ids, dead ones come last", () => {
    expect([...columnOrder([Number.NaN, 0, 1, -1], 1, 4, true)]).toEqual([2, 1, 3, 0]);
    expect([...columnOrder([Number.NaN, 0, 1, -1], 1, 4, false)]).toEqual([0, 1, 2, 3]);
  });
});

test("a spike's router is that of the layer that was worst at the spike", () => {
  const health = (layer: number, max_violation: number) => ({ layer, max_violation, token_entropy: 1 });
  const spike = { router_before: [health(0, 0.5), health(1, 0.6)], router_at: [health(0, 0.7), health(1, 4)], router_after: null };
  expect(layerAtSpike(spike as never)).toEqual({ layer: 1, before: 0.6, at: 4, after: null });
  expect(layerAtSpike({ ...spike, router_at: [] } as never)).toBeNull();
});

test("initialisation is step 0 and nothing else", () => {
  const at = (step: number, bits_per_byte: number) => ({ step, tokens: step, time_ms: 0, domain: "books", bits_per_byte, loss: null });
  expect(domainProgress([at(10, 3), at(0, 5)], ["books"])).toEqual([{ domain: "books", initial: 5, final: 3, step: 10 }]);
  expect(domainProgress([at(10, 3)], ["books"])[0]?.initial).toBeNull();
  expect(domainProgress([at(0, 5)], ["books"])[0]?.final).toBeNull();
});

test("sorting puts what is missing last, whichever way", () => {
  const rows = [{ v: 2 }, { v: null }, { v: 10 }, { v: Number.NaN }, { v: 1 }];
  expect(sortRows(rows, (row) => row.v, false).map((row) => row.v)).toEqual([1, 2, 10, null, Number.NaN]);
  expect(sortRows(rows, (row) => row.v, true).map((row) => row.v)).toEqual([10, 2, 1, null, Number.NaN]);
});

test("what is better depends on the objective's direction", () => {
  const objective = { metric: "eval/bits_per_byte", domain: "all", direction: "minimize" } as const;
  expect(differenceTone(-0.1, objective)).toBe("gain");
  expect(differenceTone(-0.1, { ...objective, direction: "maximize" })).toBe("loss");
  expect(differenceTone(0, objective)).toBe("");
});

test("addresses that cannot be read count as the default", () => {
  expect(oneOf(["a", "b"] as const, "c", "a")).toBe("a");
  expect(wholeNumber("12", 1)).toBe(12);
  expect(wholeNumber("0", 1)).toBeNull();
  expect(wholeNumber("1e3", 1)).toBeNull();
  expect(numberRange("5..2")).toBeNull();
  expect(numberRange("x")).toBeNull();
  expect(numberRange(writeRange([1.5, 20]))).toEqual([1.5, 20]);
  expect(idList("a,b,a,<x>")).toEqual(["a", "b"]);
});
