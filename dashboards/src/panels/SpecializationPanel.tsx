/** Do the experts tell the domains apart? Beside the two controls that say what "nothing" looks like. */

import type { Schemas } from "../api/client";
import { Empty, Frame } from "../components/Panel";
import { formatFixed } from "../lib/format";
import { definition, type Catalogue } from "./metrics";

interface Props {
  readonly trial: Schemas["TrialDetail"];
  readonly catalogue: Catalogue;
}

const SERIES = [
  { key: "trained", name: "trained", note: "" },
  { key: "untrained", name: "untrained", note: "the same weights at initialisation" },
  { key: "shuffled", name: "shuffled", note: "trained router, domain labels shuffled: what chance gives" },
] as const;

export function SpecializationPanel({ trial, catalogue }: Props): React.JSX.Element {
  const information = trial.summary?.domain_information ?? null;
  const layers = trial.layer_kinds.flatMap((kind, layer) => (kind === "moe" ? [layer] : []));
  let body: React.ReactNode;
  if (!trial.layer_kinds.includes("moe")) body = <Empty>This model is dense: it has no experts.</Empty>;
  else if (information === null) body = <Empty>Measured once, on held-out text, when a run has trained its whole budget.</Empty>;
  else {
    const most = Math.max(1e-9, ...SERIES.flatMap(({ key }) => information[key] ?? []));
    body = (
      <>
        <ul className="key">
          {SERIES.map(({ key, name, note }) => (
            <li key={key}>
              <span className={`key-box ${key}`} aria-hidden="true" /> {name}
              {note !== "" && <span className="muted">: {note}</span>}
            </li>
          ))}
        </ul>
        <table className="specialization">
          <caption className="visually-hidden">Mutual information of domain and expert per layer, bits</caption>
          <thead className="visually-hidden">
            <tr>
              <th scope="col">Layer</th>
              {SERIES.map(({ key, name }) => (
                <th key={key} scope="col">
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {layers.map((layer, index) => (
              <tr key={layer}>
                <th scope="row">L{layer}</th>
                {SERIES.map(({ key }) => {
                  const value = information[key]?.[index] ?? null;
                  return (
                    <td key={key} className={key}>
                      <span className={`bar ${key}`} style={{ width: `${(Math.max(0, value ?? 0) / most) * 78}%` }} aria-hidden="true" />
                      <span className="bar-value">{formatFixed(value, 3)}</span>
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </>
    );
  }
  return (
    <Frame title="Specialisation: what the expert says about the domain (bits)" hint={definition("specialization/mutual_information", catalogue)}>
      {body}
    </Frame>
  );
}
