import { describe, expect, test } from "vitest";

import { cividis, colourOf, DEAD, divergingScale, paint, sequentialScale } from "../src/charts/colourTable";
import { orderByLoad, relativeLoads, sortedProfile } from "../src/charts/loads";
import { focusRange, lowerBound, nearestIndex, xExtent } from "../src/charts/ranges";

describe("colour scales", () => {
  test("the diverging scale is neutral at the fair share, blue below and orange above", () => {
    for (const theme of ["light", "dark"] as const) {
      const scale = divergingScale(4, theme);
      const [r, g, b] = colourOf(scale, 0);
      expect(Math.max(r, g, b) - Math.min(r, g, b)).toBeLessThan(15);
      const below = colourOf(scale, -3);
      const above = colourOf(scale, 3);
      expect(below[2]).toBeGreaterThan(below[0]);
      expect(above[0]).toBeGreaterThan(above[2]);
    }
  });
  test("values beyond the ends take the colour of the end", () => {
    const scale = sequentialScale(0, 1);
    expect(colourOf(scale, 9)).toEqual(colourOf(scale, 1));
    expect(colourOf(scale, -9)).toEqual(colourOf(scale, 0));
  });
  test("cividis grows lighter all the way", () => {
    const luminance = Array.from({ length: 32 }, (_, i) => cividis(i / 31)).map(([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b);
    for (let i = 1; i < luminance.length; i += 1) expect(luminance[i]).toBeGreaterThan(luminance[i - 1] ?? 0);
  });
  test("unknown cells are transparent and dead cells magenta", () => {
    const pixels = paint([Number.NaN, 0, Number.NaN], divergingScale(4, "light"), [0, 0, 1]);
    expect(pixels[3]).toBe(0);
    expect(pixels[7]).toBe(255);
    expect([...pixels.slice(8, 11)]).toEqual([...DEAD]);
  });
});

describe("loads", () => {
  test("zero tokens is dead, the fair share is 0, twice the fair share is 1", () => {
    const { values, dead, fair } = relativeLoads([[0, 4, 8, 4]]);
    expect(fair).toEqual([4]);
    expect([...dead]).toEqual([1, 0, 0, 0]);
    expect([...values.slice(1)]).toEqual([0, 1, 0]);
  });
  test("a layer that saw nothing is unknown, not dead", () => {
    const { values, dead } = relativeLoads([[0, 0]]);
    expect([...dead]).toEqual([0, 0]);
    expect(values.every(Number.isNaN)).toBe(true);
  });
  test("the sorted profile forgets expert ids and keeps the mean at 1", () => {
    expect(sortedProfile([1, 3, 2])).toEqual(sortedProfile([3, 2, 1]));
    const profile = sortedProfile([5, 0, 7, 9]);
    expect(profile.reduce((a, b) => a + b, 0) / profile.length).toBeCloseTo(1);
  });
  test("order by load is stable", () => expect(orderByLoad([2, 5, 2, 9])).toEqual([3, 1, 0, 2]));
});

describe("ranges", () => {
  const line = { x: [0, 10, 20, 100], y: [9, 4, 2, 1] };
  test("the start does not set the range, and what it hides is counted", () => {
    const focus = focusRange([line], 0, 100, 0.15);
    expect(focus?.high).toBeLessThan(4);
    expect(focus).toMatchObject({ above: 2, below: 0 });
  });
  test("a spike after the start is inside the range", () => {
    const focus = focusRange([{ ...line, high: [9, 4, 6, 1] }], 0, 100, 0.15);
    expect(focus?.high).toBeGreaterThan(6);
  });
  test("gaps are not numbers", () => {
    expect(focusRange([{ x: [0, 1], y: [null, null] }], 0, 1, 0)).toBeNull();
    expect(focusRange([{ x: [0, 1, 2], y: [1, null, 3] }], 0, 2, 0)).toMatchObject({ above: 0, below: 0 });
  });
  test("the extent covers every line", () => {
    expect(xExtent([line, { x: [-5], y: [1] }])).toEqual([-5, 100]);
    expect(xExtent([])).toBeNull();
    // A single x would have no width to be drawn in.
    expect(xExtent([{ x: [0], y: [1] }])).toEqual([-1, 1]);
    expect(xExtent([{ x: [20], y: [1] }])).toEqual([18, 22]);
  });
  test("search in ascending lists", () => {
    expect(lowerBound([1, 3, 5], 3)).toBe(1);
    expect(lowerBound([1, 3, 5], 6)).toBe(3);
    expect(nearestIndex([1, 3, 9], 7)).toBe(2);
    expect(nearestIndex([1, 3, 9], 5)).toBe(1);
    expect(nearestIndex([], 5)).toBe(-1);
  });
});
