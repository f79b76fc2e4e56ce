/** The search space as a form: its parameters by name, those inside an option only where that option is chosen. */

/** One dimension of the space, named as the API names it. */
export interface SpaceParameter {
  readonly name: string;
  readonly kind: "int" | "float" | "choice" | "options";
  /** Of a choice its values, of options their names. */
  readonly values: readonly unknown[];
  readonly low: number | null;
  readonly high: number | null;
  /** Searched on a logarithmic scale. */
  readonly log: boolean;
  /** Exists only where that parameter has that option. */
  readonly condition: { readonly name: string; readonly option: string } | null;
}

const KINDS = ["int", "float", "choice", "options"] as const;

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function kindOf(value: unknown): (typeof KINDS)[number] | null {
  return isRecord(value) ? (KINDS.find((kind) => kind in value) ?? null) : null;
}

function inside(value: unknown, name: string): { name: string; domain: Record<string, unknown> }[] {
  if (kindOf(value) !== null) return [{ name, domain: value as Record<string, unknown> }];
  if (Array.isArray(value)) return value.flatMap((item, index) => inside(item, `${name}.${index}`));
  return isRecord(value) ? Object.entries(value).flatMap(([key, item]) => inside(item, `${name}.${key}`)) : [];
}

function flatten(name: string, domain: Record<string, unknown>, condition: SpaceParameter["condition"]): SpaceParameter[] {
  const kind = kindOf(domain);
  if (kind === null) return [];
  const held = domain[kind];
  if (kind === "options") {
    const options = isRecord(held) ? held : {};
    const mine: SpaceParameter = { name, kind, values: Object.keys(options), low: null, high: null, log: false, condition };
    return [mine, ...Object.entries(options).flatMap(([option, value]) => inside(value, `${name}.${option}`).flatMap((inner) => flatten(inner.name, inner.domain, { name, option })))];
  }
  const list = Array.isArray(held) ? (held as unknown[]) : [];
  if (kind === "choice") return [{ name, kind, values: list, low: null, high: null, log: false, condition }];
  const [low, high] = list;
  return [{ name, kind, values: [], low: typeof low === "number" ? low : null, high: typeof high === "number" ? high : null, log: domain["log"] === true, condition }];
}

/** Every parameter of the space, each after the one it depends on. */
export function spaceParameters(space: Readonly<Record<string, unknown>>): SpaceParameter[] {
  return Object.entries(space).flatMap(([path, domain]) => (isRecord(domain) ? flatten(path, domain, null) : []));
}

/** The parameters that exist at the point. */
export function activeParameters(parameters: readonly SpaceParameter[], point: Readonly<Record<string, unknown>>): SpaceParameter[] {
  const active: SpaceParameter[] = [];
  for (const parameter of parameters) {
    const { condition } = parameter;
    const open = condition === null || (active.some(({ name }) => name === condition.name) && point[condition.name] === condition.option);
    if (open) active.push(parameter);
  }
  return active;
}
