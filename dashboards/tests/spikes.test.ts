import { expect, test } from "vitest";

import { layerMoments, movesInWords } from "../src/panels/SpikeDetails";

const health = (layer: number, max_violation: number) => ({ layer, max_violation, token_entropy: 1 });

test("each layer has its four moments, unknown ones are null", () => {
  const [first, second] = layerMoments({ router_before: [health(1, 0.5), health(2, 0.6)], router_at: [health(1, 0.7), health(2, 4)], router_peak: [health(2, 5), health(1, 0.8)], router_after: null });
  expect(first).toEqual({ layer: 1, health: { before: health(1, 0.5), at: health(1, 0.7), peak: health(1, 0.8), after: null } });
  expect(second?.health.peak).toEqual(health(2, 5));
});

test("layers that moved at the same time are one sentence", () => {
  const moved = (metric: string, layer: number | null, steps_before: number) => ({ metric, layer, step: 0, steps_before, z: 7 });
  expect(
    movesInWords({ metric: "train/loss", moved: [moved("router/max_violation", 1, 12), moved("router/max_violation", 2, 12), moved("optimizer/grad_norm", null, 1), moved("router/token_entropy", 1, 0)] }),
  ).toEqual(["MaxVio of L1, L2 moved 12 steps before the training loss", "gradient norm moved 1 step before the training loss", "token entropy of L1 moved in the same step as the training loss"]);
});
