import { expect, test } from "vitest";

import { baselineSettings, differingParameters, haveReplicas, trialLabel, trialName } from "../src/lib/trials";

const search = (number: number, params: Record<string, unknown>) => ({ number, kind: "search" as const, label: null, params });

test("a baseline goes by its name, a trial by its number", () => {
  expect(trialName({ number: 0, kind: "baseline", label: "dense" })).toBe("dense");
  expect(trialName({ number: 4, kind: "search", label: null })).toBe("trial 4");
  expect(trialName({ number: 1, kind: "baseline", label: "dense", replica: 1 })).toBe("dense, seed 1");
  expect(trialName({ number: 9, kind: "added", label: "retry of trial 4" })).toBe("retry of trial 4 (trial 9)");
});

test("parameters that are the same everywhere are no columns, those only some trials have are", () => {
  const trials = [
    search(1, { "optimizer.lr": 0.1, "loop.batch": 8 }),
    search(2, { "optimizer.lr": 0.2, "loop.batch": 8, "balancing.switch_loss.0.coefficient": 0.01 }),
  ];
  const parameters = differingParameters(trials);
  expect(parameters.map(({ name }) => name)).toEqual(["lr", "coefficient"]);
  expect(trialLabel(search(1, { "optimizer.lr": 0.1 }), parameters)).toBe("trial 1 \u00b7 lr=0.1");
});

test("the first trial shows all that was proposed for it", () => {
  expect(differingParameters([search(1, { "optimizer.lr": 0.1 })]).map(({ name }) => name)).toEqual(["lr"]);
});

test("a baseline has the values of the base, but for what it sets", () => {
  const spec = { base: { model: { moe: { top_k: 2 } }, optimizer: { lr: 0.01 } }, baselines: [{ name: "dense", set: { "model.moe": null } }] };
  const settings = baselineSettings(spec as never, { number: 0, kind: "baseline", label: "dense" });
  expect([...settings]).toEqual([
    ["optimizer.lr", 0.01],
    ["model.moe", null],
  ]);
  expect(baselineSettings(spec as never, search(1, {})).size).toBe(0);
});

test("seed replicas are recognised by everything else being equal", () => {
  expect(haveReplicas([{ lr: 1, seed: 0 }, { lr: 1, seed: 1 }])).toBe(true);
  expect(haveReplicas([{ lr: 1, seed: 0 }, { lr: 2, seed: 0 }, null, null])).toBe(false);
});
