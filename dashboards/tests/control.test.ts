import { expect, test } from "vitest";

import { experimentVerbs, priorityOf, trialVerbs } from "../src/lib/control";
import { activeParameters, spaceParameters } from "../src/lib/space";

test("an experiment is asked for what changes something", () => {
  expect(experimentVerbs("running")).toEqual(["pause", "cancel", "kill"]);
  expect(experimentVerbs("paused")).toEqual(["resume", "cancel", "kill"]);
  expect(experimentVerbs("cancelling")).toEqual(["kill"]);
  expect(experimentVerbs("completed")).toEqual([]);
});

test("a trial is stopped while it is not over, and tried again once, where it failed", () => {
  expect(trialVerbs({ state: "queued" }, "paused")).toEqual(["stop"]);
  expect(trialVerbs({ state: "failed", retried_by: null }, "running")).toEqual(["retry"]);
  expect(trialVerbs({ state: "failed", retried_by: "t2" }, "running")).toEqual([]);
  expect(trialVerbs({ state: "failed" }, "completed")).toEqual(["retry"]);
  expect(trialVerbs({ state: "running" }, "cancelling")).toEqual([]);
  expect(trialVerbs({ state: "pruned" }, "running")).toEqual([]);
});

test("a priority is a whole number from -100 to 100", () => {
  expect(["10", " -100 ", "+3", "101", "1.5", "", "high"].map(priorityOf)).toEqual([10, -100, 3, null, null, null, null]);
});

const SPACE = {
  "optimizer.lr": { float: [1e-3, 1e-1], log: true, step: null },
  "model.moe.balancing": {
    options: {
      none: [],
      bias: [{ kind: "loss_free_bias", update_rate: { float: [1e-3, 1e-1], log: true } }],
      either: { choice: ["a", 2, null] },
    },
  },
};

test("parameters inside an option are named by their place in it", () => {
  const parameters = spaceParameters(SPACE);
  expect(parameters.map(({ name }) => name)).toEqual(["optimizer.lr", "model.moe.balancing", "model.moe.balancing.bias.0.update_rate", "model.moe.balancing.either"]);
  expect(parameters[0]).toMatchObject({ kind: "float", low: 1e-3, high: 1e-1, log: true, condition: null });
  expect(parameters[1]?.values).toEqual(["none", "bias", "either"]);
  expect(parameters[3]?.values).toEqual(["a", 2, null]);
});

test("a parameter exists where its option is chosen", () => {
  const parameters = spaceParameters(SPACE);
  const names = (option: string): string[] => activeParameters(parameters, { "model.moe.balancing": option }).map(({ name }) => name);
  expect(names("none")).toEqual(["optimizer.lr", "model.moe.balancing"]);
  expect(names("bias")).toContain("model.moe.balancing.bias.0.update_rate");
});
