// The latest jobs, for those who may list them.
import { listJobs } from "./api.js";
import { h } from "./dom.js";
import { KIND_NAMES, moment } from "./format.js";
import { labelOf } from "./labels.js";

const STATES = {
  uploading: "uploading",
  queued: "waiting",
  running: "in work",
  finished: "finished",
  failed: "failed",
  cancelled: "cancelled",
};

/** Return a list that fills itself, and stays away where there is nothing to list. */
export function recentJobs(signal) {
  const section = h("section.recent", { "aria-labelledby": "recent-title", hidden: true });
  listJobs(6)
    .then(({ jobs }) => {
      const seen = jobs.filter((job) => job.state !== "uploading");
      if (!seen.length || signal.aborted) return;
      section.append(h("h2", { id: "recent-title" }, "Latest"), h("ul.jobs", {}, seen.map(jobRow)));
      section.hidden = false;
    })
    .catch(() => {}); // without the token they are nobody's business
  return section;
}

function jobRow(job) {
  const label = labelOf(job) ?? `Scan ${job.id.slice(0, 6)}`;
  return h(
    "li",
    {},
    h(
      "a.job",
      { href: `/jobs/${job.id}`, "data-route": true },
      h("span.job-name", {}, label),
      h("span.quiet-text", {}, `${KIND_NAMES[job.kind] ?? job.kind} · ${moment(job.created)}`),
      h(`span.state.${job.state}`, {}, STATES[job.state]),
    ),
  );
}
