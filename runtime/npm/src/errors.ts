/** Errors that say what was found and end with what to do about it. */

export type Code =
  | "input"
  | "text"
  | "bundle"
  | "provider"
  | "execution"
  | "non-finite"
  | "poisoned"
  | "busy"
  | "state";

/** Everything that this package throws on purpose. `code` tells the kinds apart. */
export class TitansError extends Error {
  readonly code: Code;
  /** What was found, without the remedy. */
  readonly finding: string;
  readonly remedy: string;

  constructor(code: Code, finding: string, remedy: string, options?: ErrorOptions) {
    super(`${finding}; ${remedy}`, options);
    this.name = "TitansError";
    this.code = code;
    this.finding = finding;
    this.remedy = remedy;
  }
}

export const EXPORT_AGAIN = "export the bundle again";
export const COPY_AGAIN = "copy the bundle again, or export it again";
export const SAVE_AGAIN = "restore another copy, or start a new session";

export function fail(code: Code, finding: string, remedy: string): never {
  throw new TitansError(code, finding, remedy);
}

/** What an error of somebody else says, in one line. */
export function said(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split("\n")[0]?.slice(0, 300) ?? "";
}
