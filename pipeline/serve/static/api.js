// Requests to the server that this page came from. Changes carry the session's CSRF token in a header.

let csrf = null;

export class Refused extends Error {
  constructor(status, said) {
    super(said);
    this.status = status;
  }
}

async function answerOf(response) {
  if (response.ok) {
    return response;
  }
  let said = `the server answered ${response.status}`;
  try {
    said = (await response.json()).error ?? said;
  } catch {
    // Not from our server: a proxy's own page. The status says enough.
  }
  throw new Refused(response.status, said);
}

export async function ask(path, options = {}) {
  return answerOf(await fetch(path, { credentials: "same-origin", cache: "no-store", ...options }));
}

export async function askJson(path, options = {}) {
  return (await ask(path, { signal: AbortSignal.timeout(10_000), ...options })).json();
}

export async function change(method, path, body, options = {}) {
  const headers = { "X-CSRF-Token": csrf ?? "" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
  }
  const response = await ask(path, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(15_000),
    ...options,
  });
  return response.status === 204 ? null : response.json();
}

// Whether this browser may go on, and whether it could log out.
export async function session() {
  const found = await askJson("/api/session");
  csrf = found.csrf;
  return found;
}

export async function logIn(token) {
  const found = await change("POST", "/api/session", { token });
  csrf = found.csrf;
}

export async function logOut() {
  await change("DELETE", "/api/session");
  csrf = null;
}
