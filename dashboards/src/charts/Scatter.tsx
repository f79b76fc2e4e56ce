/** Points over two axes, those of a front joined by a staircase. Knows numbers only. */

import { useEffect, useId, useRef, useState } from "react";

import { formatNumber, formatTicks } from "../lib/format";
import { useTheme } from "../lib/theme";
import { slotStyle } from "./palette";
import { logTicks, niceTicks } from "./ranges";

export interface ScatterPoint {
  readonly key: string;
  readonly x: number;
  readonly y: number;
  readonly label: string;
  readonly slot: number;
  /** Drawn filled and joined with the others of its kind; the rest is hollow. */
  readonly front: boolean;
}

interface Props {
  readonly points: readonly ScatterPoint[];
  readonly xName: string;
  readonly yName: string;
  /** Which end of x is the good one: the staircase runs on that side. Null where the front is one over more than these two. */
  readonly xBetter: "lower" | "higher" | null;
  readonly summary: string;
  readonly describe: (point: ScatterPoint) => string;
  readonly onOpen?: (key: string) => void;
  readonly onHover?: (key: string | null) => void;
  readonly strong?: string | null;
  readonly height?: number;
  /** A logarithmic x; every x is above 0. */
  readonly xLog?: boolean;
  /** Names in place of the x 0, 1, 2 and so on. */
  readonly xNames?: readonly string[];
}

const LEFT = 64;
const RIGHT = 14;
const TOP = 10;
const BOTTOM = 44;

/** `low..high` with a margin, so that no point lies on an axis. */
export function padded(values: readonly number[]): readonly [number, number] {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const margin = high > low ? (high - low) * 0.08 : Math.abs(high) * 0.1 || 1;
  return [low - margin, high + margin];
}

/** The corners of the staircase through the points of a front: from one to the next no trial is as good in both. */
export function staircase(points: readonly { readonly x: number; readonly y: number }[], xBetter: "lower" | "higher"): { readonly x: number; readonly y: number }[] {
  const ordered = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
  return ordered.flatMap((point, index) => {
    const next = ordered[index + 1];
    if (next === undefined) return [point];
    // What the one with the better x has in y holds up to where the next one's x begins.
    return [point, xBetter === "lower" ? { x: next.x, y: point.y } : { x: point.x, y: next.y }];
  });
}

export function Scatter(props: Props): React.JSX.Element {
  const { points, xName, yName, summary, describe, height = 300, strong = null, xLog = false, xNames } = props;
  const theme = useTheme();
  const summaryId = useId();
  const host = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(600);
  const [pointed, setPointed] = useState<string | null>(null);
  useEffect(() => {
    const element = host.current;
    if (element === null) return undefined;
    const observer = new ResizeObserver(() => element.clientWidth > 0 && setWidth(element.clientWidth));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  const along = (x: number): number => (xLog ? Math.log10(x) : x);
  const [xLow, xHigh] = xNames === undefined ? padded(points.map(({ x }) => along(x))) : [-0.5, xNames.length - 0.5];
  const [yLow, yHigh] = padded(points.map(({ y }) => y));
  const atX = (x: number): number => LEFT + ((along(x) - xLow) / (xHigh - xLow)) * (width - LEFT - RIGHT);
  const atY = (y: number): number => height - BOTTOM - ((y - yLow) / (yHigh - yLow)) * (height - BOTTOM - TOP);
  const xTicks = xNames !== undefined ? xNames.map((_, index) => index) : xLog ? logTicks(10 ** xLow, 10 ** xHigh) : niceTicks(xLow, xHigh, Math.max(3, Math.floor(width / 110)));
  const yTicks = niceTicks(yLow, yHigh, 6);
  const write = (ticks: readonly number[]): string[] => formatTicks(ticks, (ticks[1] ?? 1) - (ticks[0] ?? 0));
  const xLabels = xNames ?? (xLog ? xTicks.map((tick) => formatNumber(tick, 2)) : write(xTicks));
  const yLabels = write(yTicks);
  const line = (props.xBetter === null ? [] : staircase(points.filter(({ front }) => front), props.xBetter)).map(({ x, y }) => `${atX(x)},${atY(y)}`).join(" ");
  const shown = points.find(({ key }) => key === (pointed ?? strong));
  const point = (key: string | null): void => {
    setPointed(key);
    props.onHover?.(key);
  };
  return (
    <div className="scatter" ref={host}>
      <svg width={width} height={height} role="img" aria-label={`${yName} over ${xName}`} aria-describedby={summaryId}>
        {xTicks.map((tick, index) => (
          <g key={tick}>
            <line className="scatter-grid" x1={atX(tick)} x2={atX(tick)} y1={TOP} y2={height - BOTTOM} />
            <text x={atX(tick)} y={height - BOTTOM + 16} textAnchor="middle">
              {xLabels[index]}
            </text>
          </g>
        ))}
        {yTicks.map((tick, index) => (
          <g key={tick}>
            <line className="scatter-grid" x1={LEFT} x2={width - RIGHT} y1={atY(tick)} y2={atY(tick)} />
            <text x={LEFT - 8} y={atY(tick) + 4} textAnchor="end">
              {yLabels[index]}
            </text>
          </g>
        ))}
        <text x={(LEFT + width - RIGHT) / 2} y={height - 8} textAnchor="middle">
          {xName}
        </text>
        <text transform={`translate(13 ${(TOP + height - BOTTOM) / 2}) rotate(-90)`} textAnchor="middle">
          {yName}
        </text>
        <polyline className="scatter-front" points={line} />
        {points.map((one) => {
          const { colour } = slotStyle(one.slot, theme);
          const big = one.key === shown?.key;
          return (
            <circle
              key={one.key}
              cx={atX(one.x)}
              cy={atY(one.y)}
              r={big ? 8 : one.front ? 6 : 4.5}
              fill={one.front ? colour : "var(--surface)"}
              stroke={colour}
              strokeWidth={2}
              opacity={one.front || big ? 1 : 0.75}
              className={props.onOpen === undefined ? "" : "scatter-point"}
              onMouseEnter={() => point(one.key)}
              onMouseLeave={() => point(null)}
              onClick={() => props.onOpen?.(one.key)}
            />
          );
        })}
      </svg>
      <p className={shown === undefined ? "heat-readout muted" : "heat-readout"} aria-live="polite">
        {shown === undefined ? "Point at a trial." : describe(shown)}
      </p>
      <p id={summaryId} className="visually-hidden">
        {summary}
      </p>
    </div>
  );
}
