import { describe, expect, test } from "vitest";

import { formatAge, formatCount, formatDuration, formatNumber, formatSetting, formatSigned, formatTicks, sentence, shortCount } from "../src/lib/format";

describe("formatNumber", () => {
  test.each([
    [0, "0"],
    [1.23456, "1.235"],
    [12.3456, "12.35"],
    [0.00024, "2.4e\u22124"],
    [0.00437, "0.00437"],
    [0.001, "0.001"],
    [0.64321, "0.6432"],
    [-3.5, "\u22123.500"],
    [123456, "123456"],
    [Number.NaN, "NaN"],
    [Number.POSITIVE_INFINITY, "+Inf"],
    [null, "\u2014"],
  ])("%s reads %s", (value, text) => expect(formatNumber(value)).toBe(text));
});

describe("formatCount", () => {
  test.each([
    [0, "0"],
    [999, "999"],
    [1000, "1.00k"],
    [12_345, "12.3k"],
    [999_960, "1.00M"],
    [1_048_576, "1.05M"],
    [3.2e9, "3.20B"],
    [2.5e17, "2.5e17"],
  ])("%s reads %s", (value, text) => expect(formatCount(value)).toBe(text));
});

describe("axes", () => {
  test("ticks have the decimals that tell them apart", () => {
    expect(formatTicks([0, 0.25, 0.5], 0.25)).toEqual(["0.00", "0.25", "0.50"]);
    expect(formatTicks([5, 10], 5)).toEqual(["5", "10"]);
    expect(formatTicks([0.002, 0.004], 0.002)).toEqual(["0.002", "0.004"]);
    expect(formatTicks([10_000, 25_000], 5000)).toEqual(["10k", "25k"]);
  });
  test("filling zeros are left out of counts", () => {
    expect(shortCount(5000)).toBe("5k");
    expect(shortCount(2500)).toBe("2.5k");
    expect(shortCount(40)).toBe("40");
    expect(shortCount(0)).toBe("0");
    expect(shortCount(1_050_000)).toBe("1.05M");
  });
});

describe("formatSigned", () => {
  test("shows the sign of a gain and of a loss, and none of nothing", () => {
    expect(formatSigned(0.0123)).toBe("+0.012");
    expect(formatSigned(-0.5)).toBe("\u22120.500");
    expect(formatSigned(-0.0001)).toBe("0.000");
    expect(formatSigned(0.0001)).toBe("0.000");
  });
});

describe("times", () => {
  test("durations are as exact as they are short", () => {
    expect(formatDuration(4.25)).toBe("4.3 s");
    expect(formatDuration(59.7)).toBe("1 min 0 s");
    expect(formatDuration(15 * 60 + 59)).toBe("16 min");
    expect(formatDuration(3 * 3600 + 61)).toBe("3 h 1 min");
    expect(formatDuration(null)).toBe("\u2014");
  });
  test("a clock ahead of ours gives no negative age", () => {
    expect(formatAge(2000, 1000)).toBe("just now");
    expect(formatAge(0, 90 * 60_000)).toBe("1 h ago");
  });
});

describe("formatSetting", () => {
  test("names a component by its kind and its values", () => {
    expect(formatSetting([{ kind: "loss_free_bias", update_rate: 0.001 }])).toBe("loss_free_bias(update_rate=0.001)");
    expect(formatSetting([])).toBe("none");
    expect(formatSetting(null)).toBe("null");
  });
});

test("words of the API become sentences", () => {
  expect(sentence("8 completed trials")).toBe("8 completed trials.");
  expect(sentence("pruned ones are left out.")).toBe("Pruned ones are left out.");
  expect(sentence(" ")).toBe("");
});
