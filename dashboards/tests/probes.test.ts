import { expect, test } from "vitest";

import { acrossLayers, byLayer, newestByLayer, probeKeys, probesOf } from "../src/panels/probes";

const catalogue = (keys: string[]) => new Map(keys.map((name) => [name, { name } as never]));
const item = (key: string, layer: number, last: (number | null)[]) => ({ key, layer, last });

test("a probe stands beside the controls that the catalogue has for it", () => {
  const probes = probesOf(
    catalogue(["train/loss", "probe/novel_thing", "probe/domain_specialization", "probe/domain_specialization_shuffled", "probe/specialization_uniform", "probe/churn", "probe/churn_uniform"]),
  );
  expect(probes).toEqual([
    { key: "probe/churn", name: "churn", uniform: "probe/churn_uniform", shuffled: null },
    { key: "probe/domain_specialization", name: "domains", uniform: "probe/specialization_uniform", shuffled: "probe/domain_specialization_shuffled" },
    { key: "probe/novel_thing", name: "novel thing", uniform: null, shuffled: null },
  ]);
  expect(probeKeys(probes)).toHaveLength(6);
});

test("layers are in order, and what one of them lacks is not counted as zero", () => {
  const items = byLayer([item("k", 2, [0.5, null]), item("k", 1, [0.1, 0.2]), item("other", 0, [9, 9])], "k");
  expect(items.map(({ layer }) => layer)).toEqual([1, 2]);
  expect(acrossLayers(items, "highest")).toEqual([0.5, 0.2]);
  expect(acrossLayers(items, "lowest")).toEqual([0.1, 0.2]);
  expect(acrossLayers(items, "median")).toEqual([0.3, 0.2]);
  expect(acrossLayers([item("k", 1, [null])], "median")).toEqual([null]);
});

test("the newest value of a layer is its last known one", () => {
  expect(newestByLayer([item("k", 1, [0.1, 0.2, null]), item("k", 2, [null])])).toEqual([{ layer: 1, value: 0.2 }]);
});
