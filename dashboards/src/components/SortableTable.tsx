/** A table whose columns sort and whose rows can be reached with j and k. */

import { useMemo, useRef, useState, type ReactNode } from "react";

import { useKeys } from "../lib/keys";
import { DOWN, UP } from "../lib/glyphs";

type SortValue = number | string | null | undefined;

export interface Column<Row> {
  readonly id: string;
  readonly name: ReactNode;
  /** The full name where `name` is short. */
  readonly title?: string | undefined;
  readonly cell: (row: Row) => ReactNode;
  /** Makes the column sortable. Missing values come last, whichever way. */
  readonly value?: ((row: Row) => SortValue) | undefined;
  readonly numeric?: boolean;
  readonly className?: string;
}

interface Props<Row> {
  readonly caption: string;
  readonly className?: string;
  readonly columns: readonly Column<Row>[];
  readonly rows: readonly Row[];
  readonly rowKey: (row: Row) => string;
  readonly rowClass?: (row: Row) => string;
  readonly onOpen?: (row: Row) => void;
  readonly onSelect?: (row: Row) => void;
  readonly onHover?: (row: Row | null) => void;
  readonly initialSort?: { readonly id: string; readonly descending: boolean };
}

// More rows than fit on many screens are shown on request: a thousand trials stay quick to sort.
const PAGE = 100;

/** Ascending order of two values of a column; missing ones are for the caller. */
export function compareValues(a: number | string, b: number | string): number {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

/** The rows in order of `value`; equal and missing values keep their order, missing ones last. */
export function sortRows<Row>(rows: readonly Row[], value: (row: Row) => SortValue, descending: boolean): Row[] {
  const missing = (row: Row): boolean => {
    const key = value(row);
    return key === null || key === undefined || Number.isNaN(key);
  };
  const known = rows.filter((row) => !missing(row));
  known.sort((a, b) => compareValues(value(a) ?? 0, value(b) ?? 0) * (descending ? -1 : 1));
  return [...known, ...rows.filter(missing)];
}

export function SortableTable<Row>(props: Props<Row>): React.JSX.Element {
  const { caption, columns, rows, rowKey, rowClass, onOpen, onSelect, onHover, initialSort } = props;
  const [sort, setSort] = useState(initialSort ?? null);
  const [limit, setLimit] = useState(PAGE);
  const body = useRef<HTMLTableSectionElement>(null);
  const sorted = useMemo(() => {
    const by = sort === null ? undefined : columns.find((column) => column.id === sort.id)?.value;
    return by === undefined || sort === null ? [...rows] : sortRows(rows, by, sort.descending);
  }, [rows, columns, sort]);

  const step = (by: number): void => {
    const all = [...(body.current?.querySelectorAll<HTMLTableRowElement>("tr[tabindex]") ?? [])];
    const at = all.findIndex((row) => row.contains(document.activeElement));
    all[at === -1 ? 0 : Math.max(0, Math.min(all.length - 1, at + by))]?.focus();
  };
  useKeys({ j: () => step(1), k: () => step(-1) });

  return (
    <div className="table-wrap">
      <table className={props.className ?? ""}>
        <caption className="visually-hidden">{caption}</caption>
        <thead>
          <tr>
            {columns.map((column) => {
              const mine = sort?.id === column.id;
              return (
                <th key={column.id} scope="col" className={column.numeric === true ? "num" : (column.className ?? "")} title={column.title} aria-sort={mine ? (sort.descending ? "descending" : "ascending") : undefined}>
                  {column.value === undefined ? (
                    column.name
                  ) : (
                    <button type="button" onClick={() => setSort({ id: column.id, descending: mine ? !sort.descending : false })}>
                      {column.name}
                      <span className="sort-mark">{mine ? (sort.descending ? DOWN : UP) : ""}</span>
                    </button>
                  )}
                </th>
              );
            })}
          </tr>
        </thead>
        <tbody ref={body}>
          {sorted.slice(0, limit).map((row) => (
            <tr
              key={rowKey(row)}
              tabIndex={onOpen === undefined ? undefined : 0}
              className={rowClass?.(row) ?? ""}
              onMouseEnter={() => onHover?.(row)}
              onMouseLeave={() => onHover?.(null)}
              onFocus={() => onHover?.(row)}
              onBlur={() => onHover?.(null)}
              onClick={(event) => {
                if (event.target instanceof Element && event.target.closest("a, button, input, label") === null) onOpen?.(row);
              }}
              onKeyDown={(event) => {
                if (event.target !== event.currentTarget) return;
                if (event.key === "Enter") onOpen?.(row);
                else if (event.key === " " && onSelect !== undefined) {
                  event.preventDefault();
                  onSelect(row);
                }
              }}
            >
              {columns.map((column) => (
                <td key={column.id} className={[column.numeric === true ? "num" : "", column.className ?? ""].join(" ").trim()}>
                  {column.cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {sorted.length > limit && (
        <button type="button" className="button more" onClick={() => setLimit(limit + 10 * PAGE)}>
          Show {Math.min(10 * PAGE, sorted.length - limit)} more of {sorted.length}
        </button>
      )}
    </div>
  );
}
