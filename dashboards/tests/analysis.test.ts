import { expect, test } from "vitest";

import { sliceAxis } from "../src/panels/analysis";
import { firstDifference, pairedInWords, placeOf, pointName, seedsInWords } from "../src/panels/PointRanking";

test("numbers are their own places, logarithmic where the space is", () => {
  expect(sliceAxis([0.1, null, 0.2], true)).toEqual({ places: [0.1, null, 0.2], names: null, log: true });
  expect(sliceAxis([1, 2], false).log).toBe(false);
  // Zero has no place on a logarithmic axis.
  expect(sliceAxis([0, 100], true).log).toBe(false);
});

test("names have places in their order", () => {
  expect(sliceAxis(["switch", "none", null, "none"], false)).toEqual({ places: [1, 0, null, 0], names: ["none", "switch"], log: false });
});

const difference = (fields: Record<string, unknown>) => ({ baseline_point: 0, baseline_label: "dense", num_pairs: 4, value: -0.1, low: -0.2, high: 0.01, within_noise: true, ...fields }) as never;

test("a paired difference says whether seeds can explain it", () => {
  expect(pairedInWords(difference({}))).toBe("within seed noise");
  expect(pairedInWords(difference({ within_noise: false }))).toBe("beyond seed noise");
  expect(pairedInWords(difference({ num_pairs: 1, low: null, high: null, within_noise: null }))).toBe("1 pair: no interval");
  expect(firstDifference({ differences: [difference({ baseline_point: 1 }), difference({ baseline_point: 0 })] })).toMatchObject({ baseline_point: 0 });
  expect(firstDifference({ differences: [] })).toBeNull();
});

test("a point goes by its number, its seeds by what became of them", () => {
  expect(pointName({ kind: "baseline", label: "dense", point: 0 })).toBe("dense");
  expect(pointName({ kind: "search", label: null, point: 3 })).toBe("point 3");
  expect(seedsInWords({ num_completed: 2, num_failed: 1, num_open: 1 })).toBe("n=2, 1 failed, 1 to come");
  expect(placeOf(2, 1, 3)).toBe(50);
  expect(placeOf(2, 2, 2)).toBe(50);
});
