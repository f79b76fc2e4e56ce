/** What is drawn over the lines: marks at an x, and how a line ended. Shapes differ, not only colours. */

import type uPlot from "uplot";

/** A vertical mark with a short label, e.g. a spike's number. */
export interface XMark {
  readonly x: number;
  readonly label: string;
}

/** A stretch of x with a short label, drawn as a bar along the bottom; `to` is null where it has not ended. */
export interface XSpan {
  readonly from: number;
  readonly to: number | null;
  readonly label: string;
  /** Drawn in the colour of what went wrong, not of a warning. */
  readonly grave: boolean;
}

/** `cut`: a bar across the end (stopped early on purpose). `failed`: a cross. `open`: a dot (still running). */
export type EndMark = "cut" | "failed" | "open";

interface Inks {
  readonly ink: string;
  readonly warn: string;
  readonly bad: string;
  readonly surface: string;
}

function inside(plot: uPlot, x: number): boolean {
  const { min, max } = plot.scales["x"] ?? {};
  return min !== undefined && min !== null && max !== undefined && max !== null && x >= min && x <= max;
}

/** Dashed verticals with a triangle and the label at the top. */
export function drawMarks(plot: uPlot, marks: readonly XMark[], { warn, surface }: Inks): void {
  const { ctx, bbox } = plot;
  const unit = devicePixelRatio;
  ctx.save();
  ctx.lineWidth = unit;
  ctx.font = `600 ${11 * unit}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  ctx.textBaseline = "top";
  let labelEnd = -Infinity;
  for (const mark of marks) {
    if (!inside(plot, mark.x)) continue;
    const x = Math.round(plot.valToPos(mark.x, "x", true));
    ctx.strokeStyle = warn;
    ctx.setLineDash([3 * unit, 3 * unit]);
    ctx.globalAlpha = 0.7;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.setLineDash([]);
    ctx.fillStyle = warn;
    ctx.beginPath();
    ctx.moveTo(x - 4 * unit, bbox.top);
    ctx.lineTo(x + 4 * unit, bbox.top);
    ctx.lineTo(x, bbox.top + 7 * unit);
    ctx.fill();
    const left = x + 5 * unit;
    // Labels of neighbouring spikes would overprint each other; the triangles stay.
    if (left > labelEnd) {
      const width = ctx.measureText(mark.label).width;
      ctx.fillStyle = surface;
      ctx.globalAlpha = 0.8;
      ctx.fillRect(left - unit, bbox.top, width + 2 * unit, 12 * unit);
      ctx.globalAlpha = 1;
      ctx.fillStyle = warn;
      ctx.fillText(mark.label, left, bbox.top);
      labelEnd = left + width + 4 * unit;
    }
  }
  ctx.restore();
}

const BAR = 5;
const MOST_LANES = 4;

/** The lane of each span, lowest first: spans that overlap take different ones, as far as there are lanes. */
export function lanesOf(spans: readonly XSpan[]): number[] {
  const busyUntil: number[] = [];
  return spans.map(({ from, to }) => {
    const free = Array.from({ length: MOST_LANES }, (_, lane) => lane).find((lane) => (busyUntil[lane] ?? -Infinity) <= from);
    const lane = free ?? MOST_LANES - 1;
    busyUntil[lane] = Math.max(busyUntil[lane] ?? -Infinity, to ?? Infinity);
    return lane;
  });
}

/** Bars along the bottom of the plot, one above the other where they overlap; labels of those that begin together are one. */
export function drawSpans(plot: uPlot, spans: readonly XSpan[], { warn, bad, surface }: Inks): void {
  const { ctx, bbox } = plot;
  const { min, max } = plot.scales["x"] ?? {};
  if (min === undefined || min === null || max === undefined || max === null) return;
  const unit = devicePixelRatio;
  const bottom = bbox.top + bbox.height;
  ctx.save();
  ctx.font = `600 ${11 * unit}px system-ui, sans-serif`;
  ctx.textAlign = "left";
  ctx.textBaseline = "bottom";
  const lanes = lanesOf(spans);
  const labels: { left: number; text: string; lane: number; grave: boolean }[] = [];
  spans.forEach((span, index) => {
    if (span.from > max || (span.to ?? Infinity) < min) return;
    const lane = lanes[index] ?? 0;
    const left = Math.round(plot.valToPos(Math.max(span.from, min), "x", true));
    const right = Math.round(plot.valToPos(Math.min(span.to ?? max, max), "x", true));
    ctx.fillStyle = span.grave ? bad : warn;
    ctx.globalAlpha = 0.75;
    ctx.fillRect(left, bottom - (lane + 1) * (BAR + 1) * unit, Math.max(right - left, 2 * unit), BAR * unit);
    const before = labels[labels.length - 1];
    if (before !== undefined && left - before.left < ctx.measureText(before.text).width + 6 * unit) {
      before.text += ` ${span.label}`;
      before.lane = Math.max(before.lane, lane);
      before.grave ||= span.grave;
    } else labels.push({ left, text: span.label, lane, grave: span.grave });
  });
  for (const { left, text, lane, grave } of labels) {
    const foot = bottom - (lane + 1) * (BAR + 1) * unit;
    ctx.fillStyle = surface;
    ctx.globalAlpha = 0.8;
    ctx.fillRect(left, foot - 13 * unit, ctx.measureText(text).width + 2 * unit, 12 * unit);
    ctx.globalAlpha = 1;
    ctx.fillStyle = grave ? bad : warn;
    ctx.fillText(text, left + unit, foot - unit);
  }
  ctx.restore();
}

/** The end of one line. */
export function drawEnds(plot: uPlot, [px, py]: readonly [number, number], end: EndMark, colour: string, surface: string): void {
  if (!inside(plot, px)) return;
  const { min, max } = plot.scales["y"] ?? {};
  if (min === undefined || min === null || max === undefined || max === null || py < min || py > max) return;
  const { ctx } = plot;
  const unit = devicePixelRatio;
  const x = plot.valToPos(px, "x", true);
  const y = plot.valToPos(py, "y", true);
  const arm = 5 * unit;
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.lineWidth = 2 * unit;
  ctx.setLineDash([]);
  ctx.beginPath();
  if (end === "cut") {
    ctx.moveTo(x, y - arm - unit);
    ctx.lineTo(x, y + arm + unit);
  } else if (end === "failed") {
    ctx.moveTo(x - arm, y - arm);
    ctx.lineTo(x + arm, y + arm);
    ctx.moveTo(x - arm, y + arm);
    ctx.lineTo(x + arm, y - arm);
  } else {
    ctx.fillStyle = surface;
    ctx.arc(x, y, 4 * unit, 0, 2 * Math.PI);
    ctx.fill();
  }
  ctx.stroke();
  ctx.restore();
}
