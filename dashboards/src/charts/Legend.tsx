/** Which line is which, and its value under the cursor. Each entry is a button that hides or shows its line. */

import { useTheme } from "../lib/theme";
import { slotStyle } from "./palette";

interface Props {
  readonly lines: readonly { readonly key: string; readonly label: string; readonly slot: number }[];
  readonly hidden: ReadonlySet<string>;
  readonly values: ReadonlyMap<string, string>;
  /** The cursor's place in words, empty while it is elsewhere. */
  readonly at: string;
  readonly onToggle: (key: string) => void;
}

/** A short piece of the line, in its colour and dash. */
export function Swatch({ slot }: { readonly slot: number }): React.JSX.Element {
  const { colour, dash } = slotStyle(slot, useTheme());
  return (
    <svg className="swatch" width="22" height="10" aria-hidden="true">
      <line x1="1" y1="5" x2="21" y2="5" stroke={colour} strokeWidth="2.5" strokeDasharray={dash.join(" ")} />
    </svg>
  );
}

export function Legend({ lines, hidden, values, at, onToggle }: Props): React.JSX.Element {
  return (
    <ul className="legend">
      {lines.map((line) => (
        <li key={line.key}>
          <button type="button" aria-pressed={!hidden.has(line.key)} title={hidden.has(line.key) ? "Show this line" : "Hide this line"} onClick={() => onToggle(line.key)}>
            <Swatch slot={line.slot} />
            <span className="legend-label">{line.label}</span>
            <span className="legend-value">{values.get(line.key) ?? ""}</span>
          </button>
        </li>
      ))}
      {at !== "" && <li className="legend-at">{at}</li>}
    </ul>
  );
}
