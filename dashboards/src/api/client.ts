/** Typed access to the API: paths, parameters and answers are those of the generated schema. */

import type { components, paths } from "./schema";

export type Schemas = components["schemas"];

type Answered<Operation> = Operation extends { responses: { 200: { content: { "application/json": infer Body } } } } ? Body
  : Operation extends { responses: { 201: { content: { "application/json": infer Body } } } } ? Body
  : Operation extends { responses: { 202: { content: { "application/json": infer Body } } } } ? Body
  : never;
type Parameters<Operation> = Operation extends { parameters: infer All } ? All : never;
type PathOf<Operation> = Parameters<Operation> extends { path: infer Values } ? Values : undefined;
type QueryOf<Operation> = Parameters<Operation> extends { query?: infer Values } ? Values : undefined;
type BodyOf<Operation> = Operation extends { requestBody?: { content: { "application/json": infer Body } } } ? (unknown extends Body ? undefined : Body) : undefined;

type WithMethod<Method extends "get" | "post"> = {
  [Path in keyof paths]: paths[Path] extends Record<Method, { responses: unknown }> ? Path : never;
}[keyof paths];
export type GetPath = WithMethod<"get">;
export type PostPath = WithMethod<"post">;
export type GetAnswer<Path extends GetPath> = Answered<paths[Path]["get"]>;
export type PostAnswer<Path extends PostPath> = Answered<paths[Path]["post"]>;

/** What went wrong, in words for people. `status` 0: no answer at all. */
export class ApiError extends Error {
  override readonly name = "ApiError";

  constructor(
    readonly status: number,
    readonly title: string,
    message: string,
    readonly requestId: string | null,
    /** One per field that is wrong. */
    readonly errors: readonly Schemas["ProblemError"][] = [],
  ) {
    super(message);
  }
}

function address(template: string, path: unknown, query: unknown): string {
  let url = template;
  for (const [name, value] of Object.entries((path ?? {}) as Record<string, unknown>)) {
    url = url.replace(`{${name}}`, encodeURIComponent(String(value)));
  }
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries((query ?? {}) as Record<string, unknown>)) {
    if (value === null || value === undefined) continue;
    for (const item of Array.isArray(value) ? value : [value]) search.append(name, String(item));
  }
  const text = search.toString();
  return text === "" ? url : `${url}?${text}`;
}

async function failure(response: Response): Promise<ApiError> {
  const requestId = response.headers.get("X-Request-Id");
  if ((response.headers.get("Content-Type") ?? "").includes("json")) {
    const problem = (await response.json()) as Partial<Schemas["Problem"]>;
    return new ApiError(response.status, problem.title ?? "Error", problem.detail ?? response.statusText, problem.request_id ?? requestId, problem.errors ?? []);
  }
  return new ApiError(response.status, "Error", `The server answered ${response.status} ${response.statusText}.`, requestId);
}

// An answer that takes longer will not come; without a limit one lost packet would stop the polling for good.
const TIMEOUT_MS = 30_000;

async function send(method: string, url: string, body: unknown, signal: AbortSignal | undefined, key?: string): Promise<Response> {
  const headers: Record<string, string> = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key !== undefined) headers["Idempotency-Key"] = key;
  let response: Response;
  try {
    response = await fetch(url, {
      method,
      credentials: "same-origin",
      signal: signal === undefined ? AbortSignal.timeout(TIMEOUT_MS) : AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]),
      headers,
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "No answer", "The evenload API does not answer. Is `evenload up` still running?", null);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

/** GET a JSON answer. */
export async function get<Path extends GetPath>(
  template: Path,
  options: { readonly path?: PathOf<paths[Path]["get"]>; readonly query?: QueryOf<paths[Path]["get"]>; readonly signal?: AbortSignal } = {},
): Promise<GetAnswer<Path>> {
  const response = await send("GET", address(template, options.path, options.query), undefined, options.signal);
  return (await response.json()) as GetAnswer<Path>;
}

/** GET bytes. */
export async function getBytes<Path extends GetPath>(
  template: Path,
  options: { readonly path?: PathOf<paths[Path]["get"]>; readonly query?: QueryOf<paths[Path]["get"]>; readonly signal?: AbortSignal } = {},
): Promise<ArrayBuffer> {
  return (await send("GET", address(template, options.path, options.query), undefined, options.signal)).arrayBuffer();
}

/** POST and give the JSON answer; undefined where the answer has no body. Repeated with the same `key` it acts once. */
export async function post<Path extends PostPath>(
  template: Path,
  options: { readonly path?: PathOf<paths[Path]["post"]>; readonly body?: BodyOf<paths[Path]["post"]>; readonly signal?: AbortSignal; readonly key?: string } = {},
): Promise<PostAnswer<Path>> {
  const response = await send("POST", address(template, options.path, undefined), options.body, options.signal, options.key);
  return (response.status === 204 ? undefined : await response.json()) as PostAnswer<Path>;
}
