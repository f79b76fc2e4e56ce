import { describe, expect, test } from "vitest";

import { lastPoint, lineOf, linesToCsv, median } from "../src/charts/lines";

describe("lineOf", () => {
  test("places that only other curves have are dropped", () => {
    const line = lineOf({ grid: [0, 1, 2, 3, 4], last: [1, null, 2, null, 3], raw: true });
    expect(line).toEqual({ x: [0, 2, 4], y: [1, 2, 3] });
  });
  test("missing data stays a gap", () => {
    const line = lineOf({ grid: [0, 1, 2, 3, 4, 5], last: [1, 1, null, 1, 1, 1], raw: true });
    expect(line.y).toEqual([1, 1, null, 1, 1, 1]);
    const buckets = { grid: [0, 1, 2, 3, 4, 5, 6, 7], last: [1, 1, null, null, null, 1, 1, 1] };
    expect(lineOf(buckets).y).toEqual([1, 1, null, 1, 1, 1]);
  });
  test("one bucket of jitter is no gap", () => {
    expect(lineOf({ grid: [0, 1, 2, 3, 4, 5], last: [1, 1, null, 1, 1, 1] }).y).not.toContain(null);
  });
  test("evaluations are joined however far apart", () => {
    expect(lineOf({ grid: [0, 1, 2, 3, 9], last: [4, 3, null, null, 2] }, true).y).toEqual([4, 3, 2]);
  });
  test("extremes are kept where values were reduced", () => {
    const line = lineOf({ grid: [0, 1], last: [1, 2], min: [0, 2], max: [5, 2] });
    expect(line.high).toEqual([5, 2]);
    expect(line.low).toEqual([0, 2]);
  });
  test("nothing gives nothing", () => {
    expect(lineOf({ grid: [0, 1], last: [null, null] })).toEqual({ x: [], y: [] });
    expect(lastPoint({ x: [], y: [] })).toBeNull();
  });
});

test("the median of an even number lies between the middle two", () => {
  expect(median([3, 1, 2])).toBe(2);
  expect(median([4, 1, 2, 3])).toBe(2.5);
  expect(median([])).toBeNaN();
});

test("a table has every x once and quotes what needs it", () => {
  const csv = linesToCsv("tokens", [
    { label: "a, b", x: [0, 2], y: [1, 3] },
    { label: "c", x: [1, 2], y: [null, 4] },
  ]);
  expect(csv).toBe('tokens,"a, b",c\n0,1,\n2,3,4\n');
});
