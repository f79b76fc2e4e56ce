/** Lines over a common x: drag to zoom, double click or Esc to see all, hover for values. Knows numbers only. */

import { useEffect, useId, useMemo, useRef, useState } from "react";
import uPlot from "uplot";

import { formatNumber, formatTicks } from "../lib/format";
import { TRIANGLE } from "../lib/glyphs";
import { useTheme } from "../lib/theme";
import { drawMarks, drawEnds, drawSpans, type EndMark, type XMark, type XSpan } from "./marks";
import { Legend } from "./Legend";
import { lastPoint } from "./lines";
import { slotStyle, withAlpha } from "./palette";
import { focusRange, nearestIndex, xExtent, type Line } from "./ranges";

/** A line with what is needed to tell it from the others. */
export interface ChartLine extends Line {
  readonly key: string;
  readonly label: string;
  readonly slot: number;
  /** How the line ends, drawn at its last point. */
  readonly end?: EndMark | undefined;
}

interface Props {
  readonly lines: readonly ChartLine[];
  readonly xName: string;
  readonly yName: string;
  /** A sentence for those who cannot see the chart. */
  readonly summary: string;
  readonly formatX: (x: number) => string;
  readonly height?: number;
  readonly logY?: boolean;
  /** Share of the visible x at the start whose values do not set the y range; 0 shows everything. */
  readonly warmup?: number;
  readonly points?: boolean;
  /** Each value holds until the next. */
  readonly stepped?: boolean;
  readonly marks?: readonly XMark[];
  readonly spans?: readonly XSpan[];
  readonly zoom?: readonly [number, number] | null;
  readonly onZoom?: (range: readonly [number, number] | null) => void;
  /** Charts with the same key share the cursor. */
  readonly syncKey?: string;
  readonly legend?: boolean;
  /** Key of the line to bring forward; the others fade. */
  readonly strong?: string | null;
  /** No axis names: what is around the chart says them. */
  readonly compact?: boolean;
}

interface Drawn {
  readonly plot: uPlot;
  readonly element: HTMLDivElement;
}

const FEW = 6;
const NO_MARKS: readonly XMark[] = [];
const NO_SPANS: readonly XSpan[] = [];
const FONT = "12px system-ui, sans-serif";

function css(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function table(lines: readonly ChartLine[]): uPlot.AlignedData {
  if (lines.length === 0) return [[]];
  return uPlot.join(
    lines.map((line) => [line.x, line.y, line.low ?? [], line.high ?? []].slice(0, line.low ? 4 : 2) as unknown as uPlot.AlignedData),
  );
}

export function LineChart(props: Props): React.JSX.Element {
  const { lines, xName, yName, summary, formatX, height = 240, logY = false, warmup = 0, points = false, stepped = false } = props;
  const { marks = NO_MARKS, spans = NO_SPANS, zoom = null, onZoom, syncKey, legend = true, strong = null, compact = false } = props;
  const theme = useTheme();
  const summaryId = useId();
  const host = useRef<HTMLDivElement>(null);
  const drawn = useRef<Drawn | null>(null);
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set());
  const [cursorX, setCursorX] = useState<number | null>(null);
  const [showAll, setShowAll] = useState(false);

  const visible = useMemo(() => lines.filter((line) => !hidden.has(line.key)), [lines, hidden]);
  const extent = useMemo(() => zoom ?? xExtent(visible), [visible, zoom]);
  // A handful of points is read one by one: none of them is left out.
  const warm = showAll || zoom !== null || visible.every((line) => line.y.length <= FEW) ? 0 : warmup;
  const focus = useMemo(() => (extent === null ? null : focusRange(visible, extent[0], extent[1], warm)), [visible, extent, warm]);
  const cut = focus === null || logY ? 0 : focus.above + focus.below;

  // What the plot's own callbacks need of the newest props, without building the plot again.
  const latest = useRef({ visible, marks, spans, extent, focus, onZoom, logY, formatX });
  latest.current = { visible, marks, spans, extent, focus, onZoom, logY, formatX };

  const structure = JSON.stringify([visible.map((line) => [line.key, line.slot, line.low !== undefined]), theme, logY, points, xName, yName, height, compact]);

  useEffect(() => {
    const element = host.current;
    if (element === null) return undefined;
    const ink = css("--ink-2");
    const grid = { stroke: css("--grid"), width: 1 };
    const series: uPlot.Series[] = [{}];
    const bands: uPlot.Band[] = [];
    for (const line of latest.current.visible) {
      const { colour, dash } = slotStyle(line.slot, theme);
      series.push({ stroke: colour, width: 1.75, dash: [...dash], points: { show: points, size: 5, fill: colour }, ...(stepped && uPlot.paths.stepped !== undefined ? { paths: uPlot.paths.stepped({ align: 1 }) } : {}) });
      if (line.low !== undefined) {
        const at = series.length;
        series.push({ stroke: withAlpha(colour, 0), width: 0, points: { show: false } });
        series.push({ stroke: withAlpha(colour, 0), width: 0, points: { show: false } });
        bands.push({ series: [at + 1, at], fill: withAlpha(colour, 0.22) });
      }
    }
    const plot = new uPlot(
      {
        width: Math.max(120, element.clientWidth),
        height,
        legend: { show: false },
        series,
        bands,
        scales: {
          x: { time: false, range: () => [...(latest.current.extent ?? [0, 1])] as [number, number] },
          y: logY
            ? { distr: 3 }
            : { range: () => (latest.current.focus === null ? [0, 1] : [latest.current.focus.low, latest.current.focus.high]) },
        },
        axes: [
          {
            stroke: ink, font: FONT, labelFont: FONT, grid, ticks: { ...grid, size: 4 }, size: compact ? 26 : 32, ...(compact ? {} : { label: xName, labelSize: 20, labelGap: 0 }), space: 64,
            values: (_, ticks) => ticks.map((tick) => latest.current.formatX(tick)),
          },
          {
            stroke: ink, font: FONT, labelFont: FONT, grid, ticks: { ...grid, size: 4 }, size: 54, ...(compact ? {} : { label: yName, labelSize: 18, labelGap: 2 }), space: compact ? 26 : 36,
            values: (_, ticks, _axis, _space, increment) => (logY ? ticks.map((tick) => (tick === null ? "" : formatNumber(tick, 2))) : formatTicks(ticks, increment)),
          },
        ],
        focus: { alpha: 0.25 },
        cursor: {
          drag: { x: true, y: false, setScale: false },
          points: { size: 7 },
          ...(syncKey === undefined ? {} : { sync: { key: syncKey, setSeries: false } }),
        },
        hooks: {
          setSelect: [
            (self) => {
              if (self.select.width < 4) return;
              const from = self.posToVal(self.select.left, "x");
              const to = self.posToVal(self.select.left + self.select.width, "x");
              self.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              latest.current.onZoom?.([from, to]);
            },
          ],
          setCursor: [
            (self) => {
              const left = self.cursor.left ?? -1;
              setCursorX(left < 0 ? null : self.posToVal(left, "x"));
            },
          ],
          draw: [
            (self) => {
              const inks = { ink, warn: css("--warn"), bad: css("--bad"), surface: css("--surface") };
              drawSpans(self, latest.current.spans, inks);
              drawMarks(self, latest.current.marks, inks);
              for (const line of latest.current.visible) {
                const point = line.end === undefined ? null : lastPoint(line);
                if (point !== null && line.end !== undefined) {
                  drawEnds(self, point, line.end, slotStyle(line.slot, theme).colour, css("--surface"));
                }
              }
            },
          ],
        },
      },
      table(latest.current.visible),
      element,
    );
    drawn.current = { plot, element };
    const showEverything = (): void => latest.current.onZoom?.(null);
    plot.over.addEventListener("dblclick", showEverything);
    const observer = new ResizeObserver(() => {
      if (element.clientWidth > 0) plot.setSize({ width: element.clientWidth, height });
    });
    observer.observe(element);
    return () => {
      observer.disconnect();
      plot.destroy();
      drawn.current = null;
    };
    // `structure` stands for everything that needs a new plot; data, zoom and marks flow through the effect below.
  }, [structure, syncKey]);

  useEffect(() => {
    drawn.current?.plot.setData(table(visible), true);
  }, [visible, extent, focus, marks, spans]);

  useEffect(() => {
    const plot = drawn.current?.plot;
    if (plot === undefined) return;
    let at = 1;
    for (const line of visible) {
      if (line.key === strong) break;
      at += line.low === undefined ? 1 : 3;
    }
    if (strong !== null && at < plot.series.length) plot.setSeries(at, { focus: true });
    else plot.setSeries(null as unknown as number, { focus: true });
  }, [strong, visible, structure]);

  const values = new Map<string, string>();
  if (cursorX !== null) {
    for (const line of visible) {
      const at = nearestIndex(line.x, cursorX);
      const first = line.x[0];
      const last = line.x[line.x.length - 1];
      const inside = first !== undefined && last !== undefined && cursorX >= first && cursorX <= last;
      values.set(line.key, inside || line.x.length === 1 ? formatNumber(line.y[at]) : "");
    }
  }

  return (
    <div className="chart" onKeyDown={(event) => event.key === "Escape" && onZoom?.(null)}>
      <div className="chart-canvas" ref={host} role="img" aria-label={`${yName} over ${xName}`} aria-describedby={summaryId} style={{ minHeight: height }} />
      <p id={summaryId} className="visually-hidden">
        {summary}
      </p>
      <div className="chart-foot">
        {legend && (
          <Legend
            lines={lines}
            hidden={hidden}
            values={values}
            at={cursorX === null ? "" : `${xName} ${formatX(cursorX)}`}
            onToggle={(key) =>
              setHidden((before) => {
                const after = new Set(before);
                if (!after.delete(key)) after.add(key);
                return after;
              })
            }
          />
        )}
        <span className="chart-chips">
          {cut > 0 && !showAll && (
            <button type="button" className="chip" onClick={() => setShowAll(true)}>
              {TRIANGLE} {cut} {cut === 1 ? "point" : "points"} outside the range: show
            </button>
          )}
          {showAll && warmup > 0 && (
            <button type="button" className="chip" onClick={() => setShowAll(false)}>
              fit to the part after warm-up
            </button>
          )}
          {zoom !== null && onZoom !== undefined && (
            <button type="button" className="chip" onClick={() => onZoom(null)}>
              zoomed: show all
            </button>
          )}
        </span>
      </div>
    </div>
  );
}
