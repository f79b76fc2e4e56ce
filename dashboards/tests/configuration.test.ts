import { expect, test } from "vitest";

import { differences, flatten, SECTION, shortNames } from "../src/lib/configuration";

test("leaves are found by dotted path, lists stay whole", () => {
  expect([...flatten({ a: { b: 1, c: [1, 2] }, d: null })]).toEqual([
    ["a.b", 1],
    ["a.c", [1, 2]],
    ["d", null],
  ]);
});

test("only what differs is listed", () => {
  const rows = differences([
    { lr: 1, seed: 0, moe: { top_k: 2 } },
    { lr: 2, seed: 0, moe: { top_k: 2 } },
  ]);
  expect(rows).toEqual([{ path: "lr", values: [1, 2] }]);
});

test("a section that is null in one document is one row, not one per leaf", () => {
  const rows = differences([{ moe: null }, { moe: { top_k: 2, num_experts: 8 } }, { moe: { top_k: 4, num_experts: 8 } }]);
  expect(rows.map((row) => row.path)).toEqual(["moe", "moe.top_k"]);
  expect(rows[0]?.values).toEqual([null, SECTION, SECTION]);
  expect(rows[1]?.values).toEqual([undefined, 2, 4]);
});

test("a path missing without a null section above it is a difference", () => {
  expect(differences([{ a: 1 }, { a: 1, b: 2 }]).map((row) => row.path)).toEqual(["b"]);
});

test("names are as short as they can be and still differ", () => {
  const names = shortNames(["optimizer.lr", "optimizer.router.lr_scale", "optimizer.expert.lr_scale"]);
  expect([...names.values()]).toEqual(["lr", "router.lr_scale", "expert.lr_scale"]);
});
