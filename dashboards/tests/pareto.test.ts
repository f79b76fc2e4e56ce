import { expect, test } from "vitest";

import { logTicks, niceTicks } from "../src/charts/ranges";
import { padded, staircase } from "../src/charts/Scatter";
import { aimsOf, valuesOf } from "../src/panels/pareto";

test("ticks are round numbers within the range", () => {
  expect(niceTicks(0, 1, 5)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1]);
  expect(niceTicks(2.31, 2.47, 4)).toEqual([2.35, 2.4, 2.45]);
  expect(niceTicks(-3, 12, 3)).toEqual([0, 5, 10]);
  expect(niceTicks(1e6, 3.5e6, 3)).toEqual([1e6, 2e6, 3e6]);
  expect(niceTicks(4, 4, 3)).toEqual([4]);
});

test("no point lies on an axis, a single one has room too", () => {
  expect(padded([0, 1])).toEqual([-0.08, 1.08]);
  expect(padded([5])).toEqual([4.5, 5.5]);
  expect(padded([0])).toEqual([-1, 1]);
});

test("between two trials of the front the staircase promises only what one of them has", () => {
  const points = [{ x: 2, y: 1 }, { x: 1, y: 3 }];
  // Both to be small: up to x = 2 the best y is still 3.
  expect(staircase(points, "lower")).toEqual([{ x: 1, y: 3 }, { x: 2, y: 3 }, { x: 2, y: 1 }]);
  // x to be large: above x = 1 only y = 1 is to be had, if that is the better one there.
  expect(staircase(points, "higher")).toEqual([{ x: 1, y: 3 }, { x: 1, y: 1 }, { x: 2, y: 1 }]);
});

test("the objectives by name, the first one first", () => {
  expect(
    aimsOf({
      objective: { metric: "eval/bits_per_byte", domain: "books" },
      further_objectives: [{ metric: "tokens_per_s", domain: "all", direction: "maximize" }, { metric: "router/max_violation", direction: "minimize" }],
    }),
  ).toEqual([
    { name: "held-out bits per byte, books", better: "lower" },
    { name: "tokens/s", better: "higher" },
    { name: "MaxVio", better: "lower" },
  ]);
  expect(valuesOf({ objective: 2, further_values: [null, 3] } as never)).toEqual([2, null, 3]);
  expect(valuesOf({ objective: 2, further_values: null } as never)).toEqual([2]);
});

test("a logarithmic axis has powers of ten, and more where these are few", () => {
  expect(logTicks(8e-4, 0.12)).toEqual([1e-3, 1e-2, 1e-1]);
  expect(logTicks(3e-3, 0.03)).toEqual([5e-3, 1e-2, 2e-2]);
});
