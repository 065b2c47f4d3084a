// A job on its way: where it stands, how long it takes, and how to stop it.
import { ApiError, cancelJob, deleteJob, follow } from "./api.js";
import { announce, h, icon, problemBox } from "./dom.js";
import { seconds } from "./format.js";
import { labelOf } from "./labels.js";

const STEPS = ["waiting", "reading", "network", "writing"];
const STEP_NAMES = { waiting: "Waiting", reading: "Reading", network: "Computing", writing: "Writing" };

/** Show a job until it has ended; calls ended(job) when it has finished well. */
export async function showProgress(main, job, { go, signal, ended }) {
  const steps = STEPS.map((step) => h("li", {}, h("span.dot"), STEP_NAMES[step]));
  const bar = h("progress", { max: 1, "aria-label": "Progress" });
  const words = h("p.progress-words");
  const lost = h("p.note", { role: "status" });
  const cancel = h("button", { type: "button", id: "cancel", onclick: () => stop() }, "Cancel");
  const stop = async () => {
    cancel.disabled = true;
    words.textContent = "Cancelling…";
    try {
      await cancelJob(job.id);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      lost.textContent = error.message;
    }
  };
  main.replaceChildren(
    h(
      "div.home",
      {},
      h(
        "section.working",
        { "aria-labelledby": "working-title" },
        h("p.quiet-text", {}, labelOf(job) ?? "A scan"),
        h("h1", { id: "working-title" }, "In work"),
        h("ol.steps", {}, steps),
        bar,
        words,
        lost,
        h("div.row", {}, cancel),
        h("p.quiet-text", {}, "You may close this page, reload it, or share its address: the work goes on."),
      ),
    ),
  );
  let stage = null;
  const change = (now, problem) => {
    lost.textContent = problem ? `${problem.message} Trying again…` : "";
    if (!now) return;
    if (!now.progress) {
      document.title = "AR2-UNet";
      if (now.state === "finished") ended(now);
      else showEnded(main, now, go);
      return;
    }
    show(now.progress, { steps, bar, words });
    if (now.progress.stage !== stage) announce(STEP_NAMES[now.progress.stage]);
    stage = now.progress.stage;
  };
  change(job, null);
  await follow(job.id, change, signal);
}

function show(progress, { steps, bar, words }) {
  const at = STEPS.indexOf(progress.stage);
  steps.forEach((step, i) => {
    step.className = i < at ? "done" : i === at ? "now" : "";
    if (i === at) step.setAttribute("aria-current", "step");
    else step.removeAttribute("aria-current");
  });
  const left = progress.seconds_left === null ? "" : ` · ${seconds(progress.seconds_left)} left`;
  const counted = progress.stage === "network" && progress.total > 0;
  if (counted) bar.value = progress.done / progress.total;
  else if (progress.stage === "writing") bar.value = 1;
  else bar.removeAttribute("value");
  words.textContent = {
    waiting: progress.ahead ? `${progress.ahead} before this one${left}` : "Starting…",
    reading: "Reading the scan",
    network: counted ? `Slice ${progress.done} of ${progress.total}${left}` : `Computing${left}`,
    writing: "Measuring, and writing the results",
  }[progress.stage];
  document.title = counted ? `${Math.round((100 * progress.done) / progress.total)} % · AR2-UNet` : "AR2-UNet";
}

const ENDINGS = {
  cancelled: ["Cancelled", { message: "This job was cancelled.", advice: "Nothing of it is kept but this note." }],
  uploading: [
    "Not uploaded",
    {
      message: "The upload of this scan was interrupted when its page was left.",
      advice: "A page cannot open your files again by itself: choose them once more.",
    },
  ],
};

/** Show a job that failed, was cancelled, or whose upload was left. */
export function showEnded(main, job, go) {
  const [title, problem] = ENDINGS[job.state] ?? ["This did not work", job.error];
  const forget = async () => {
    await deleteJob(job.id).catch(() => {});
    go("/");
  };
  main.replaceChildren(
    h(
      "div.home",
      {},
      h(
        "section.working",
        {},
        h("p.quiet-text", {}, labelOf(job) ?? "A scan"),
        h("h1", {}, title),
        problemBox(
          problem,
          h("a.button.primary", { href: "/", "data-route": true }, "Choose another scan"),
          h("button", { type: "button", onclick: forget }, icon("bin"), "Remove this job"),
        ),
      ),
    ),
  );
}
