/** Several objectives: which trials are best in none at the cost of another. */

import { useMemo } from "react";

import type { Schemas } from "../api/client";
import type { Answer } from "../api/queries";
import { Scatter, type ScatterPoint } from "../charts/Scatter";
import { Panel } from "../components/Panel";
import { trialName } from "../lib/trials";
import { valuesOf, writeValue, type Aim } from "./pareto";

interface Props {
  readonly answer: Answer<Schemas["Comparison"]>;
  readonly aims: readonly Aim[];
  /** Which two are drawn. */
  readonly x: number;
  readonly y: number;
  readonly onAxes: (x: number, y: number) => void;
  readonly strong: string | null;
  readonly onHover: (trialId: string | null) => void;
  readonly onOpen: (trialId: string) => void;
}

interface AxisProps {
  readonly label: string;
  readonly aims: readonly Aim[];
  readonly value: number;
  readonly onChange: (index: number) => void;
}

function Axis({ label, aims, value, onChange }: AxisProps): React.JSX.Element {
  return (
    <label className="axis-choice">
      {label}
      <select value={value} onChange={(event) => onChange(Number(event.target.value))}>
        {aims.map(({ name }, index) => (
          <option key={name} value={index}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}

export function ParetoPanel({ answer, aims, x, y, onAxes, strong, onHover, onOpen }: Props): React.JSX.Element {
  const rows = answer.data?.rows;
  const points = useMemo<ScatterPoint[]>(
    () =>
      (rows ?? []).flatMap((row) => {
        const values = valuesOf(row);
        const [atX, atY] = [values[x] ?? null, values[y] ?? null];
        // Only what completed has the last word on every objective; what ran shorter would stand in a better place than it earned.
        if (atX === null || atY === null || row.state !== "completed") return [];
        return [{ key: row.trial_id, x: atX, y: atY, label: trialName(row), slot: row.number, front: row.on_front === true }];
      }),
    [rows, x, y],
  );
  const front = (rows ?? []).filter((row) => row.on_front === true);
  const byId = new Map((rows ?? []).map((row) => [row.trial_id, row]));
  const describe = ({ key, label }: ScatterPoint): string => {
    const row = byId.get(key);
    const values = row === undefined ? [] : valuesOf(row);
    const limits = [...(row?.violations ?? []), ...(row?.veto == null ? [] : [row.veto])];
    return `${label}${row?.on_front === true ? ", on the front" : ""}: ${aims.map(({ name }, index) => `${name} ${writeValue(values[index])}`).join(", ")}${limits.length === 0 ? "" : `; beyond a limit: ${limits.join("; ")}`}`;
  };
  const words = aims.map(({ name, better }) => `${name} (${better} is better)`).join(", ");
  return (
    <Panel
      title="Pareto front"
      hint={`Objectives: ${words}. Filled: no other trial that keeps to the limits is as good in all and better in one${aims.length > 2 ? ", over all objectives, also those that are not drawn" : ""}. A small difference may be seed noise.`}
      className="wide"
      answer={answer}
      height={340}
      empty={() => (points.length === 0 ? "No trial has completed with a value of both objectives yet." : null)}
      actions={
        aims.length > 2 && (
          <>
            <Axis label="across" aims={aims} value={x} onChange={(index) => onAxes(index, index === y ? x : y)} />
            <Axis label="up" aims={aims} value={y} onChange={(index) => onAxes(index === x ? y : x, index)} />
          </>
        )
      }
    >
      {() => (
        <div className="split">
          <Scatter
            points={points}
            xName={aims[x]?.name ?? ""}
            yName={aims[y]?.name ?? ""}
            xBetter={aims.length === 2 ? (aims[x]?.better ?? null) : null}
            summary={`${points.length} completed trials, ${front.length} of them on the front: ${front.map(trialName).join(", ")}.`}
            describe={describe}
            strong={strong}
            onHover={onHover}
            onOpen={onOpen}
          />
          <div className="table-wrap">
            <table>
              <caption className="visually-hidden">Trials on the front</caption>
              <thead>
                <tr>
                  <th scope="col">On the front</th>
                  {aims.map(({ name }) => (
                    <th key={name} scope="col" className="num wrap">
                      {name}
                    </th>
                  ))}
                </tr>
              </thead>
              <tbody>
                {front.map((row) => (
                  <tr key={row.trial_id} onMouseEnter={() => onHover(row.trial_id)} onMouseLeave={() => onHover(null)}>
                    <th scope="row">{trialName(row)}</th>
                    {valuesOf(row).map((value, index) => (
                      <td key={aims[index]?.name ?? index} className="num">
                        {writeValue(value)}
                      </td>
                    ))}
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </div>
      )}
    </Panel>
  );
}
