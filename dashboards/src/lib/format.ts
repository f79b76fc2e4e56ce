/** Numbers, quantities and times as people read them. Pure; the same in every place of the dashboard. */

import { DASH, MINUS, NONE } from "./glyphs";

const STEPS: readonly (readonly [number, string])[] = [
  [1e12, "T"],
  [1e9, "B"],
  [1e6, "M"],
  [1e3, "k"],
];

function sign(text: string): string {
  return text.startsWith("-") ? MINUS + text.slice(1) : text;
}

/** A number with `digits` significant digits, never in a form like 1.20e+1; a dash where there is none. */
export function formatNumber(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined) return NONE;
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "+Inf" : `${MINUS}Inf`;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) {
    const [mantissa = "", exponent = ""] = value.toExponential(Math.max(0, digits - 2)).split("e");
    const short = mantissa.includes(".") ? mantissa.replace(/\.?0+$/, "") : mantissa;
    return `${sign(short)}e${sign(exponent.replace("+", ""))}`;
  }
  const whole = Math.floor(Math.log10(size)) + 1;
  const text = value.toFixed(Math.max(0, digits - whole));
  return sign(size < 1 ? text.replace(/0+$/, "") : text);
}

/** Labels of an axis whose ticks are `increment` apart: as many decimals as tell them apart, no more. */
export function formatTicks(ticks: readonly number[], increment: number): string[] {
  const largest = ticks.reduce((most, tick) => Math.max(most, Math.abs(tick)), 0);
  if (largest >= 1e4) return ticks.map((tick) => shortCount(tick));
  if (largest > 0 && largest < 1e-3) return ticks.map((tick) => formatNumber(tick, 3));
  let decimals = 0;
  while (decimals < 8 && Math.abs(increment * 10 ** decimals - Math.round(increment * 10 ** decimals)) > 1e-6) decimals += 1;
  return ticks.map((tick) => sign(tick.toFixed(decimals)));
}

/** A count without the zeros that only fill it up: 5k, 2.5M. For axes, where neighbours tell the precision. */
export function shortCount(value: number): string {
  return formatCount(value).replace(/\.(\d*?)0+(?=[kMBT]|$)/, (_, kept: string) => (kept === "" ? "" : `.${kept}`));
}

/** A number with a fixed number of decimals, for columns whose points must line up. */
export function formatFixed(value: number | null | undefined, decimals: number): string {
  if (value === null || value === undefined) return NONE;
  return Number.isFinite(value) ? sign(value.toFixed(decimals)) : formatNumber(value);
}

/** A difference with its sign always shown. */
export function formatSigned(value: number | null | undefined, decimals = 3): string {
  if (value === null || value === undefined) return NONE;
  if (!Number.isFinite(value)) return formatNumber(value);
  const text = value.toFixed(decimals);
  return value > 0 && Number(text) !== 0 ? `+${text}` : sign(Number(text) === 0 ? text.replace("-", "") : text);
}

/** A count (tokens, parameters, FLOPs) in at most four characters and its letter: 12.3k, 4.10M. */
export function formatCount(value: number | null | undefined): string {
  if (value === null || value === undefined) return NONE;
  if (!Number.isFinite(value)) return formatNumber(value);
  if (Math.abs(value) >= 1e15) return formatNumber(value, 3);
  for (const [size, letter] of STEPS) {
    // 999,950 would round to "1000k": take the next letter from there on.
    if (Math.abs(value) >= size * 0.99995) {
      const scaled = value / size;
      return sign(scaled.toFixed(Math.abs(scaled) >= 99.95 ? 0 : Math.abs(scaled) >= 9.995 ? 1 : 2)) + letter;
    }
  }
  return sign(Number.isInteger(value) ? String(value) : value.toPrecision(3));
}

/** A fraction as per cent. */
export function formatPercent(fraction: number | null | undefined, decimals = 0): string {
  return fraction === null || fraction === undefined ? NONE : `${sign((fraction * 100).toFixed(decimals))}%`;
}

/** A duration with as many units as it takes to be exact to about 5 %. */
export function formatDuration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return NONE;
  if (seconds < 10) return `${Number.isInteger(seconds) ? seconds : seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 10) return `${minutes} min ${whole % 60} s`;
  if (minutes < 60) return `${Math.round(whole / 60)} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** How long ago `then_ms` was, in its largest unit. */
export function formatAge(thenMs: number, nowMs: number): string {
  const seconds = Math.max(0, (nowMs - thenMs) / 1000);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

/** A point in time in the reader's own zone, to the second. */
export function formatTime(ms: number): string {
  return new Date(ms).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}

/** A configuration value: plain values as they are, structures in compact JSON. */
export function formatSetting(value: unknown): string {
  if (value === undefined) return NONE;
  if (value === null) return "null";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : formatNumber(value, 4);
  if (typeof value === "string") return value;
  if (typeof value === "boolean") return value ? "true" : "false";
  if (Array.isArray(value)) return value.length === 0 ? "none" : value.map(formatSetting).join(", ");
  if (typeof value === "object") {
    const fields = Object.entries(value);
    const kind = fields.find(([name]) => name === "kind");
    const rest = fields.filter(([name]) => name !== "kind").map(([name, item]) => `${name}=${formatSetting(item)}`);
    return kind === undefined ? rest.join(" ") : `${String(kind[1])}${rest.length > 0 ? `(${rest.join(" ")})` : ""}`;
  }
  return String(value);
}

/** Words of the API as a sentence: a capital at the start, a full stop at the end. */
export function sentence(words: string): string {
  const text = words.trim();
  if (text === "") return "";
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

/** A unit as an axis shows it; bare ratios show none. */
export function unitSuffix(unit: string | undefined): string {
  return unit === undefined || unit === "1" || unit === "" ? "" : ` (${unit})`;
}

/** A range of numbers, e.g. of a training step's samples. */
export function formatRange(low: number, high: number): string {
  return low === high ? String(low) : `${low}${DASH}${high}`;
}
