import { expect, test } from "vitest";

import { changesOf, checkpointBefore, fieldOf, parseValue, valueAt, writeValue } from "../src/lib/fork";
import { changesInWords } from "../src/panels/LineagePanel";

const CONFIG = { optimizer: { lr: 0.01, betas: [0.9, 0.95] }, loop: { max_grad_norm: null }, schedule: { kind: "cosine" } };

test("values are read as they are written, numbers with an exponent too", () => {
  expect(["1e-4", "-3", ".5", "true", "null", "", "cosine", "[1, 2]", '{"kind": "wsd"}', "{broken"].map(parseValue)).toEqual([
    1e-4, -3, 0.5, true, null, null, "cosine", [1, 2], { kind: "wsd" }, "{broken",
  ]);
  for (const value of [1e-4, 12, true, null, "cosine", "12", "null", "", [1, 2], { kind: "wsd" }]) expect(parseValue(writeValue(value))).toEqual(value);
});

test("a path leads through sections and lists", () => {
  expect(valueAt(CONFIG, "optimizer.betas.1")).toBe(0.95);
  expect(valueAt(CONFIG, "loop.nothing.here")).toBeUndefined();
});

test("only what differs is sent", () => {
  const typed = new Map([
    ["optimizer.lr", "1e-2"],
    ["loop.max_grad_norm", "1.0"],
    ["optimizer.betas.1", "0.95"],
  ]);
  expect(changesOf(typed, CONFIG)).toEqual({ "loop.max_grad_norm": 1 });
});

test("the checkpoint before a spike is the newest one that is kept", () => {
  const kept = [{ step: 10 }, { step: 30 }, { step: 50 }];
  expect(checkpointBefore(kept, 50)).toEqual({ step: 30 });
  expect(checkpointBefore(kept, 10)).toBeNull();
});

test("a pointer of a refusal names its field", () => {
  expect(fieldOf("/set/optimizer.lr")).toBe("optimizer.lr");
  expect(fieldOf("/set/data.mixture.a~1b")).toBe("data.mixture.a/b");
  expect(fieldOf("/step")).toBe("step");
});

test("changes in one line", () => {
  expect(changesInWords({})).toBe("nothing changed");
  expect(changesInWords({ "optimizer.lr": 1e-4, "loop.clipping": null })).toBe("optimizer.lr = 1e\u22124, loop.clipping = null");
});
