/** The complete configuration of a trial, as dotted paths. */

import { useState } from "react";

import { Empty, Frame } from "../components/Panel";
import { flatten } from "../lib/configuration";
import { formatSetting } from "../lib/format";

interface Props {
  readonly config: Readonly<Record<string, unknown>> | null;
  /** Paths that the search set. */
  readonly searched: readonly string[];
  readonly fingerprint: string | null;
}

export function ConfigPanel({ config, searched, fingerprint }: Props): React.JSX.Element {
  const [query, setQuery] = useState("");
  const settings = [...flatten(config ?? {})].filter(([path]) => path.toLowerCase().includes(query.toLowerCase()));
  const chosen = (path: string): boolean => searched.some((parameter) => path === parameter || path.startsWith(`${parameter}.`) || parameter.startsWith(`${path}.`));
  return (
    <Frame
      title="Configuration"
      hint={fingerprint === null ? undefined : `Fingerprint ${fingerprint.slice(0, 12)}: equal for equal runs. Set by the search: in bold.`}
      className="wide"
      actions={config !== null && <input type="search" placeholder="Filter (/)" aria-label="Filter settings" value={query} onChange={(event) => setQuery(event.target.value)} />}
    >
      {config === null ? (
        <Empty>This point is no valid configuration; the reason is at the top of the page.</Empty>
      ) : (
        <dl className="settings">
          {settings.map(([path, value]) => (
            <div key={path} className={chosen(path) ? "chosen" : ""}>
              <dt>{path}</dt>
              <dd title={formatSetting(value)}>{formatSetting(value)}</dd>
            </div>
          ))}
        </dl>
      )}
    </Frame>
  );
}
