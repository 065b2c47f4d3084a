// What a scan is called is known to this tab alone: a file's name may be a patient's, so it is never sent.

const key = (id) => `label:${id}`;

export function rememberLabel(id, label) {
  try {
    sessionStorage.setItem(key(id), label);
  } catch {
    // storage is switched off: the scan goes without a name
  }
}

/** Return the name under which a job's scan was chosen in this tab; null if it was not. */
export function labelOf(job) {
  if (job.sample) return "The embedded sample";
  try {
    return sessionStorage.getItem(key(job.id));
  } catch {
    return null;
  }
}
