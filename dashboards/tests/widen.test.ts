import { expect, test } from "vitest";

import { rangeInWords, readDomain, typedDomain, widened } from "../src/lib/widen";

const SPACE = {
  "optimizer.lr": { float: [1e-4, 0.01], step: null, log: true },
  "model.moe.top_k": { int: [1, 4], step: 1, log: false },
  "data.seq_len": { choice: [16, 32] },
};

test("a domain that nobody touched reads as it was, so nothing is sent", () => {
  const typed = new Map(Object.entries(SPACE).map(([path, domain]) => [path, typedDomain(domain)]));
  expect(widened(typed, SPACE)).toEqual({ space: {}, unreadable: [] });
});

test("bounds of a range are typed as numbers and the rest of it is kept", () => {
  const typed = new Map([
    ["optimizer.lr", { low: "1e-5", high: "0.1", text: "" }],
    ["model.moe.top_k", { low: "1", high: "8", text: "" }],
  ]);
  expect(widened(typed, SPACE).space).toEqual({
    "optimizer.lr": { float: [1e-5, 0.1], step: null, log: true },
    "model.moe.top_k": { int: [1, 8], step: 1, log: false },
  });
});

test("choices and new paths are typed as JSON", () => {
  const typed = new Map([
    ["data.seq_len", { low: "", high: "", text: '{"choice": [16, 32, 64]}' }],
    ["optimizer.weight_decay", { low: "", high: "", text: '{"float": [0, 0.3]}' }],
  ]);
  expect(widened(typed, SPACE).space).toEqual({ "data.seq_len": { choice: [16, 32, 64] }, "optimizer.weight_decay": { float: [0, 0.3] } });
});

test("what is no domain is named and not sent", () => {
  const typed = new Map([
    ["optimizer.lr", { low: "low", high: "0.1", text: "" }],
    ["data.seq_len", { low: "", high: "", text: "[16, 32]" }],
    ["model.moe.top_k", { low: "1", high: "", text: "" }],
  ]);
  expect(widened(typed, SPACE)).toEqual({ space: {}, unreadable: ["optimizer.lr", "data.seq_len", "model.moe.top_k"] });
  expect(readDomain({ low: "", high: "", text: "{broken" }, null)).toBeNull();
});

test("a range says its scale", () => {
  expect(Object.values(SPACE).slice(0, 2).map(rangeInWords)).toEqual(["float, log", "int"]);
  expect(rangeInWords({ float: [0, 1], step: 0.25 })).toBe("float, step 0.25");
});
