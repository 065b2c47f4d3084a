// The server's interface. Every failure becomes an ApiError with a message and what to do next.

export class ApiError extends Error {
  constructor({ code, message, advice }, status = 0) {
    super(message);
    this.code = code;
    this.advice = advice;
    this.status = status;
  }
}

const OFFLINE = {
  code: "offline",
  message: "The server does not answer.",
  advice: "Check that it runs (ar2unet serve) and that you are connected to its network, then try again.",
};

async function toError(response) {
  try {
    return new ApiError((await response.json()).error, response.status);
  } catch {
    return new ApiError({ code: "internal", message: `The server answered ${response.status}.`, advice: "Try again." });
  }
}

/** Ask the server; returns the answer if it is a success. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(OFFLINE);
  }
  if (!response.ok) throw await toError(response);
  return response;
}

const asJson = async (path, options) => (await ask(path, options)).json();
const post = (path, body) =>
  asJson(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const getAbout = () => asJson("/api/about");
export const getSession = () => asJson("/session");
export const signOut = () => ask("/session", { method: "DELETE" });
export const getJob = (id, signal) => asJson(`/api/jobs/${id}`, { signal });
export const listJobs = (limit) => asJson(`/api/jobs?limit=${limit}`);
export const createJob = (kind, sample = false) => post("/api/jobs", { kind, sample });
export const startJob = (id) => asJson(`/api/jobs/${id}/start`, { method: "POST" });
export const cancelJob = (id) => asJson(`/api/jobs/${id}/cancel`, { method: "POST" });
export const deleteJob = (id) => ask(`/api/jobs/${id}`, { method: "DELETE" });
export const getReport = (url) => asJson(url);

export async function signIn(token) {
  await ask("/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
}

export const saveCorrection = (id, body) =>
  asJson(`/api/jobs/${id}/corrections`, {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream" },
    body,
  });

/** Return a file, telling onProgress(received, total) on the way. */
export async function download(url, total, onProgress = () => {}, signal = undefined) {
  const response = await ask(url, { signal });
  const reader = response.body.getReader();
  const parts = [];
  let received = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    received += value.length;
    onProgress(received, Math.max(total, received));
  }
  return new Blob(parts);
}

/** Upload one file; fetch cannot tell how far it is. */
export function upload(id, role, file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const stop = () => request.abort();
    request.open("POST", `/api/jobs/${id}/uploads?role=${encodeURIComponent(role)}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "json";
    request.upload.onprogress = (event) => onProgress(event.loaded);
    request.onload = () => {
      if (request.status === 201) resolve(request.response);
      else reject(new ApiError(request.response?.error ?? OFFLINE, request.status));
    };
    request.onerror = () => reject(new ApiError(OFFLINE));
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    request.onloadend = () => signal.removeEventListener("abort", stop);
    signal.addEventListener("abort", stop);
    request.send(file);
  });
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Follow a job until it has ended; onChange(job, problem) is called at every change, and when the server is lost. */
export async function follow(id, onChange, signal) {
  let revision = null;
  let failures = 0;
  while (!signal.aborted) {
    try {
      const job = await asJson(`/api/jobs/${id}${revision === null ? "" : `?revision=${revision}`}`, { signal });
      failures = 0;
      if (signal.aborted) return;
      onChange(job, null);
      if (!["queued", "running"].includes(job.state)) return;
      revision = job.revision;
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.code !== "offline") throw error;
      failures += 1;
      onChange(null, error);
      await pause(Math.min(1000 * 2 ** failures, 10000));
    }
  }
}
