/** The token dialog and the list of keys. */

import { useEffect, useRef, useState, type ReactNode } from "react";

import { openSession } from "../api/session";

interface ModalProps {
  readonly title: string;
  readonly onClose: () => void;
  readonly wide?: boolean;
  readonly children: ReactNode;
}

/** A dialog over the page; Esc, a click beside it and whatever in it calls `onClose` end it. */
export function Modal({ title, onClose, wide = false, children }: ModalProps): React.JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (dialog.current?.open === false) dialog.current.showModal();
  }, []);
  return (
    <dialog ref={dialog} className={wide ? "wide" : ""} aria-label={title} onClose={onClose} onClick={(event) => event.target === dialog.current && dialog.current?.close()}>
      <div className="dialog-body">
        <h2>{title}</h2>
        {children}
      </div>
    </dialog>
  );
}

/** Asks for the token after a 401; the page's address stays as it is. */
export function TokenDialog({ problem, onSignedIn }: { readonly problem: string | null; readonly onSignedIn: () => void }): React.JSX.Element {
  const [token, setToken] = useState("");
  const [refused, setRefused] = useState(problem);
  const submit = async (): Promise<void> => {
    try {
      await openSession(token.trim());
      onSignedIn();
    } catch (error) {
      setRefused(error instanceof Error ? error.message : String(error));
    }
  };
  return (
    <Modal title="Token needed" onClose={() => undefined}>
      <p>
        This evenload asks for its token. <code>evenload token</code> prints it; the address that <code>evenload up</code> shows contains it.
      </p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void submit();
        }}
      >
        <label>
          Token
          <input type="password" autoComplete="off" autoFocus value={token} onChange={(event) => setToken(event.target.value)} />
        </label>
        {refused !== null && (
          <p className="failed" role="alert">
            {refused}
          </p>
        )}
        <button type="submit" className="button primary" disabled={token.trim() === ""}>
          Open
        </button>
      </form>
    </Modal>
  );
}

const KEYS: readonly (readonly [string, string])[] = [
  ["/", "search"],
  ["j  k", "next and previous row"],
  ["Enter", "open the row"],
  ["Space", "select or deselect the trial"],
  ["c", "compare the selected trials"],
  ["arrow keys", "step of the expert heatmap; cell of a heatmap (Shift: by 10)"],
  ["n  b", "next and previous spike"],
  ["Esc", "show the whole range, close"],
  ["g", "list of experiments"],
  ["t", "light or dark"],
  ["?", "this list"],
];

export function KeysDialog({ onClose }: { readonly onClose: () => void }): React.JSX.Element {
  return (
    <Modal title="Keys" onClose={onClose}>
      <table className="keys">
        <tbody>
          {KEYS.map(([key, meaning]) => (
            <tr key={key}>
              <th scope="row">
                {key.split("  ").map((part) => (
                  <kbd key={part}>{part}</kbd>
                ))}
              </th>
              <td>{meaning}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <form method="dialog">
        <button type="submit" className="button">
          Close
        </button>
      </form>
    </Modal>
  );
}

interface ConfirmProps {
  readonly title: string;
  readonly confirm: string;
  /** What the way out is called. */
  readonly keep?: string;
  readonly onConfirm: () => void;
  readonly onClose: () => void;
  readonly children: ReactNode;
}

export function ConfirmDialog({ title, confirm, keep = "Keep running", onConfirm, onClose, children }: ConfirmProps): React.JSX.Element {
  return (
    <Modal title={title} onClose={onClose}>
      {children}
      <form method="dialog" className="dialog-foot">
        <button type="submit" className="button">
          {keep}
        </button>
        <button type="submit" className="button danger" onClick={onConfirm}>
          {confirm}
        </button>
      </form>
    </Modal>
  );
}
