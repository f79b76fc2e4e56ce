import { expect, test } from "vitest";

import { nothingInWords } from "../src/panels/ImplicatedPanel";
import { placesInWords } from "../src/panels/QueuePanel";

test("where no document coincides, the reason is said", () => {
  const found = { num_trials: 4, num_spiking_trials: 3, num_spikes: 7, min_trials: 2 };
  expect(nothingInWords(found)).toBe("7 spikes in 3 of 4 trials; no document was in the batches of 2 of them.");
  expect(nothingInWords({ ...found, num_spiking_trials: 1 })).toMatch(/Only 1 of 4 trials had a spike/);
  expect(nothingInWords({ ...found, num_spiking_trials: 0, num_spikes: 0 })).toBe("No trial had a spike.");
  expect(nothingInWords({ ...found, num_trials: 0, num_spiking_trials: 0, num_spikes: 0 })).toBe("No trial has trained yet.");
});

test("free places in words leave out what the cluster has none of", () => {
  const total = { cpus: 8, gpus: 0, memory_gib: 30 };
  expect(placesInWords({ cpus: 6, gpus: 0, memory_gib: 12.5 }, total)).toBe("2 of 8 CPUs, 17.5 of 30 GiB of memory");
  expect(placesInWords({ cpus: 9, gpus: 0, memory_gib: 0 }, null)).toBe("");
});
