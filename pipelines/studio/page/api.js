/** The service's HTTP API, as the page calls it. */

const TOKEN = "ediffi-token";

/** An answer that is no success; its message is for people. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, code?: string, retryAfter?: number}} [more] HTTP status, the API's
   *   code, and the seconds after which to try again.
   */
  constructor(message, { status = 0, code = "", retryAfter = 0 } = {}) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, retryAfter });
  }
}

/** Keep the service's token for this tab; it is sent with every request. */
export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service does not answer. See whether it still runs, and draw again.");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  const retryAfter = Number(answer.headers.get("Retry-After")) || 0;
  throw toError(text, { status: answer.status, retryAfter });
}

/** An error of the API's JSON shape, `{"error": {"message", "code", …}}`. */
function toError(text, more) {
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    // A proxy in between answers with pages of its own: the status is all there is to tell.
  }
  const message = error.message ?? `The service answered with status ${more.status}.`;
  return new ApiError(message, { code: error.code, ...more });
}

/** Models, their stages and experts, limits and defaults: `GET /v1/ediffi/model`. */
export async function model() {
  return (await ask("v1/ediffi/model")).json();
}

/**
 * Draw pictures: `POST /v1/ediffi/sample`, streamed.
 *
 * @param {object} request body of the request.
 * @param {AbortSignal} [signal] ends the request, and takes its pictures from the service's queue.
 * @yields {object} events of the service, from `queued` to `finished`, in order of time.
 * @throws {ApiError} the service refuses, fails, or ends the stream early.
 */
export async function* sample(request, signal) {
  const answer = await ask("v1/ediffi/sample", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true }),
    signal,
  });
  for await (const { name, data } of serverSentEvents(answer.body)) {
    if (name === "done") return;
    if (name === "error") throw toError(data, {});
    yield JSON.parse(data);
  }
  throw new ApiError("The service ended before the picture was finished. Draw again.");
}

/** Server-sent events of a stream of bytes, which `EventSource` reads over GET only. */
async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r?\n/);
        const field = (key) =>
          lines
            .filter((line) => line.startsWith(`${key}:`))
            .map((line) => line.slice(key.length + 1).replace(/^ /, ""))
            .join("\n");
        if (field("data")) yield { name: field("event"), data: field("data") };
      }
    }
  } finally {
    await reader.cancel();
  }
}
