/** A matrix as coloured cells on a canvas, with a cursor that mouse and arrow keys move. Knows numbers only. */

import { useEffect, useMemo, useRef, useState } from "react";

import { useTheme } from "../lib/theme";
import { colourOf, paint, type ColourScale } from "./colourTable";

interface Props {
  readonly rows: number;
  readonly columns: number;
  /** Row-major; NaN where nothing is known. */
  readonly values: ArrayLike<number>;
  readonly scale: ColourScale;
  /** 1 where a cell is dead: magenta with a cross whatever its value. */
  readonly dead?: ArrayLike<number>;
  readonly rowLabels: readonly string[];
  /** Ticks below, by column. */
  readonly columnTicks: readonly { readonly column: number; readonly label: string }[];
  readonly columnName: string;
  /** Labels drawn with emphasis. */
  readonly strongRow?: number | null;
  readonly summary: string;
  readonly describe: (row: number, column: number) => string;
  readonly onPick?: (row: number, column: number) => void;
  /** A column marked from outside, e.g. the step shown elsewhere. */
  readonly markedColumn?: number | null;
  readonly cellHeight?: number;
}

interface Cell {
  readonly row: number;
  readonly column: number;
}

function hatch(context: CanvasRenderingContext2D, width: number, height: number, ink: string): void {
  context.save();
  context.strokeStyle = ink;
  context.globalAlpha = 0.35;
  context.lineWidth = 1;
  context.beginPath();
  for (let x = -height; x < width; x += 6) {
    context.moveTo(x, height);
    context.lineTo(x + height, 0);
  }
  context.stroke();
  context.restore();
}

function crosses(context: CanvasRenderingContext2D, props: Props, width: number, height: number): void {
  if (props.dead === undefined) return;
  const cellWidth = width / props.columns;
  const cellHeight = height / props.rows;
  const arm = Math.min(cellWidth, cellHeight) * 0.28;
  if (arm < 1.5) return;
  context.save();
  context.strokeStyle = "#ffffff";
  context.lineWidth = Math.max(1, arm * 0.35);
  context.beginPath();
  for (let cell = 0; cell < props.rows * props.columns; cell += 1) {
    if (props.dead[cell] !== 1) continue;
    const x = ((cell % props.columns) + 0.5) * cellWidth;
    const y = (Math.floor(cell / props.columns) + 0.5) * cellHeight;
    context.moveTo(x - arm, y - arm);
    context.lineTo(x + arm, y + arm);
    context.moveTo(x - arm, y + arm);
    context.lineTo(x + arm, y - arm);
  }
  context.stroke();
  context.restore();
}

export function Heatmap(props: Props): React.JSX.Element {
  const { rows, columns, values, scale, dead, rowLabels, columnTicks, summary, describe, onPick } = props;
  const theme = useTheme();
  const canvas = useRef<HTMLCanvasElement>(null);
  const [cell, setCell] = useState<Cell | null>(null);
  const [width, setWidth] = useState(0);
  const cellHeight = props.cellHeight ?? Math.max(8, Math.min(34, Math.round(220 / Math.max(1, rows))));
  const height = cellHeight * rows;
  const pixels = useMemo(() => paint(values, scale, dead), [values, scale, dead]);

  useEffect(() => {
    const element = canvas.current;
    if (element === null) return undefined;
    const observer = new ResizeObserver(() => setWidth(element.clientWidth));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  useEffect(() => {
    const element = canvas.current;
    const context = element?.getContext("2d") ?? null;
    if (element === null || context === null || width === 0 || rows * columns === 0 || pixels.length !== rows * columns * 4) return;
    element.width = Math.round(width * devicePixelRatio);
    element.height = Math.round(height * devicePixelRatio);
    context.scale(devicePixelRatio, devicePixelRatio);
    hatch(context, width, height, getComputedStyle(element).color);
    // One pixel per cell on a canvas of its own, then one scaled copy: 0.07 ms for 24 x 64 cells.
    const small = document.createElement("canvas");
    small.width = columns;
    small.height = rows;
    small.getContext("2d")?.putImageData(new ImageData(pixels, columns, rows), 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, width, height);
    if (cellHeight >= 8 && rows > 1) {
      context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--surface");
      for (let row = 1; row < rows; row += 1) context.fillRect(0, row * cellHeight - 0.5, width, 1);
      if (width / columns >= 8) for (let column = 1; column < columns; column += 1) context.fillRect((column * width) / columns - 0.5, 0, 1, height);
    }
    crosses(context, props, width, height);
  }, [pixels, width, height, rows, columns, theme]);

  const pointAt = (event: React.PointerEvent): Cell => {
    const box = event.currentTarget.getBoundingClientRect();
    const clamp = (value: number, limit: number): number => Math.max(0, Math.min(limit - 1, Math.floor(value)));
    return {
      row: clamp(((event.clientY - box.top) / box.height) * rows, rows),
      column: clamp(((event.clientX - box.left) / box.width) * columns, columns),
    };
  };
  const onKeyDown = (event: React.KeyboardEvent): void => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const from = cell ?? { row: 0, column: 0 };
    if (move !== undefined) {
      event.preventDefault();
      const stride = event.shiftKey ? 10 : 1;
      setCell({
        row: Math.max(0, Math.min(rows - 1, from.row + (move[0] ?? 0))),
        column: Math.max(0, Math.min(columns - 1, from.column + (move[1] ?? 0) * stride)),
      });
    } else if (event.key === "Enter" && cell !== null) onPick?.(cell.row, cell.column);
  };

  const shown = cell !== null && cell.row < rows && cell.column < columns ? cell : null;
  return (
    <div className="heat">
      <div className="heat-body">
        <div className="heat-rows" aria-hidden="true">
          {rowLabels.map((label, row) => (
            <span key={label} style={{ height: cellHeight }} className={row === props.strongRow ? "strong" : ""}>
              {label}
            </span>
          ))}
        </div>
        <div className="heat-canvas">
          <canvas
            ref={canvas}
            style={{ height, width: "100%" }}
            role="img"
            aria-label={summary}
            tabIndex={0}
            onPointerMove={(event) => setCell(pointAt(event))}
            onPointerLeave={() => setCell(null)}
            onClick={() => shown !== null && onPick?.(shown.row, shown.column)}
            onKeyDown={onKeyDown}
          />
          {shown !== null && (
            <span
              className="heat-cursor"
              style={{ left: `${(shown.column / columns) * 100}%`, top: shown.row * cellHeight, width: `${100 / columns}%`, height: cellHeight }}
            />
          )}
          {props.markedColumn !== undefined && props.markedColumn !== null && (
            <span className="heat-marked" style={{ left: `${((props.markedColumn + 0.5) / columns) * 100}%`, height }} />
          )}
          <div className="heat-ticks" aria-hidden="true">
            {columnTicks.map(({ column, label }) => (
              <span key={column} style={{ left: `${((column + 0.5) / columns) * 100}%` }} className={column === 0 ? "first" : column === columns - 1 ? "last" : ""}>
                {label}
              </span>
            ))}
          </div>
          <div className="heat-axis" aria-hidden="true">
            {props.columnName}
          </div>
        </div>
      </div>
      <p className={shown === null ? "heat-readout muted" : "heat-readout"} aria-live="polite">
        {shown === null ? "Point at a cell, or move through them with the arrow keys." : describe(shown.row, shown.column)}
      </p>
    </div>
  );
}

interface BarProps {
  readonly scale: ColourScale;
  readonly name: string;
  readonly ticks: readonly { readonly value: number; readonly label: string }[];
  readonly dead?: boolean;
}

/** The scale itself, with its ends and unit. */
export function ColourBar({ scale, name, ticks, dead = false }: BarProps): React.JSX.Element {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const context = canvas.current?.getContext("2d") ?? null;
    if (context === null) return;
    for (let x = 0; x < 160; x += 1) {
      const [r, g, b] = colourOf(scale, scale.low + ((scale.high - scale.low) * x) / 159);
      context.fillStyle = `rgb(${r} ${g} ${b})`;
      context.fillRect(x, 0, 1, 10);
    }
  }, [scale]);
  return (
    <div className="colour-bar">
      <span className="colour-bar-name">{name}</span>
      <span className="colour-bar-scale">
        <canvas ref={canvas} width={160} height={10} aria-hidden="true" />
        <span className="colour-bar-ticks">
          {ticks.map(({ value, label }) => (
            <span key={label} style={{ left: `${((value - scale.low) / (scale.high - scale.low)) * 100}%` }}>
              {label}
            </span>
          ))}
        </span>
      </span>
      {dead && (
        <span className="colour-bar-dead">
          <svg width="14" height="14" viewBox="0 0 14 14" aria-hidden="true">
            <rect width="14" height="14" fill="#cc0088" />
            <path d="M4 4 10 10M4 10 10 4" stroke="#fff" strokeWidth="1.6" />
          </svg>
          dead: no token at all
        </span>
      )}
    </div>
  );
}
