import { describe, expect, test } from "vitest";

import { SERIES_COLOURS, slotStyle, SURFACE } from "../src/charts/palette";

type Vector = readonly [number, number, number];
type Matrix = readonly [Vector, Vector, Vector];

// Machado, Oliveira, Fernandes 2009 (doi:10.1109/TVCG.2009.113), severity 1.0, applied to linear RGB.
const VISION: Readonly<Record<string, Matrix>> = {
  normal: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
  protan: [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
  deutan: [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
  tritan: [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
};

function linear(hex: string): Vector {
  return [1, 3, 5].map((at) => {
    const channel = Number.parseInt(hex.slice(at, at + 2), 16) / 255;
    return channel <= 0.04045 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4;
  }) as unknown as Vector;
}

function apply(matrix: Matrix, colour: Vector): Vector {
  return matrix.map((row) => Math.min(1, Math.max(0, row[0] * colour[0] + row[1] * colour[1] + row[2] * colour[2]))) as unknown as Vector;
}

function lab([r, g, b]: Vector): Vector {
  const f = (t: number): number => (t > 0.008856 ? Math.cbrt(t) : 7.787 * t + 16 / 116);
  const x = f((0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047);
  const y = f(0.2126 * r + 0.7152 * g + 0.0722 * b);
  const z = f((0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883);
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

function contrast(a: string, b: string): number {
  const luminance = (hex: string): number => {
    const [r, g, bl] = linear(hex);
    return 0.2126 * r + 0.7152 * g + 0.0722 * bl;
  };
  const [low, high] = [luminance(a), luminance(b)].sort((p, q) => p - q) as [number, number];
  return (high + 0.05) / (low + 0.05);
}

describe.each(["light", "dark"] as const)("%s series colours", (theme) => {
  const colours = SERIES_COLOURS[theme];
  test.each(Object.entries(VISION))("differ with %s vision", (_, matrix) => {
    for (const [i, a] of colours.entries()) {
      for (const b of colours.slice(i + 1)) {
        const [p, q] = [lab(apply(matrix, linear(a))), lab(apply(matrix, linear(b)))];
        expect(Math.hypot(p[0] - q[0], p[1] - q[1], p[2] - q[2]), `${a} ${b}`).toBeGreaterThanOrEqual(15);
      }
    }
  });
  test("stand out from the background", () => {
    for (const colour of colours) expect(contrast(colour, SURFACE[theme]), colour).toBeGreaterThanOrEqual(3);
  });
  test("no two of the first twelve slots look the same", () => {
    const styles = Array.from({ length: 12 }, (_, slot) => JSON.stringify(slotStyle(slot, theme)));
    expect(new Set(styles).size).toBe(12);
  });
});
