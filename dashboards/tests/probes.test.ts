import { expect, test } from "vitest";

import { acrossLayers, byLayer, newestByLayer, probeKeys, probesOf, SATURATION, withSaturation } from "../src/panels/probes";

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

test("saturation of the summary stands beside the series, at the evaluations it is of", () => {
  const series = { grid: [0, 10, 20, 30], items: [item("probe/churn", 1, [null, 0.1, 0.2, 0.3])] };
  const found = withSaturation(series, [{ step: 0, by_layer: [0.3, 0.4] }, { step: 20, by_layer: [0.8, 0.9] }], [1, 2], 0.25);
  expect(byLayer(found.items, SATURATION).map(({ layer, last }) => [layer, last])).toEqual([
    [1, [0.3, null, 0.8, null]],
    [2, [0.4, null, 0.9, null]],
  ]);
  expect(byLayer(found.items, `${SATURATION}_uniform`)[0]?.last).toEqual([0.25, null, 0.25, null]);
  expect(withSaturation(series, [], [1, 2], 0.25)).toBe(series);
  expect(probeKeys(probesOf(catalogue([SATURATION, "probe/churn"])))).toEqual(["probe/churn"]);
});
