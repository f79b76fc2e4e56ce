/** One choice out of a few, as a row of buttons. */

interface Props<T extends string> {
  readonly label: string;
  readonly options: readonly { readonly value: T; readonly name: string; readonly title?: string }[];
  readonly value: T;
  readonly onChange: (value: T) => void;
}

export function Switch<T extends string>({ label, options, value, onChange }: Props<T>): React.JSX.Element {
  return (
    <div className="switch" role="group" aria-label={label}>
      {options.map((option) => (
        <button key={option.value} type="button" aria-pressed={option.value === value} title={option.title} onClick={() => onChange(option.value)}>
          {option.name}
        </button>
      ))}
    </div>
  );
}
