// The first page: choose a scan, or take the sample; below it, the latest jobs.
import { ApiError, createJob, deleteJob, startJob, upload } from "./api.js";
import { announce, h, icon, problemBox } from "./dom.js";
import { droppedFiles, hint, sortFiles } from "./files.js";
import { bytes, KIND_NAMES, ROLE_NAMES, seconds, sentence } from "./format.js";
import { rememberLabel } from "./labels.js";
import { recentJobs } from "./recent.js";

const AT_ONCE = 4; // uploads beside one another: a DICOM series has hundreds of small files
const TITLES = {
  segmentation: ["Segment a FLAIR abnormality", "Drop a brain MR scan. The mask, its volume and a report come back."],
  staging: ["Stage dementia from a slice", "Drop an axial T1 slice. The stage, how sure it is, and why come back."],
};

/** Fill main with the first page. go(path) changes the address; signal ends when the page is left. */
export function showHome(main, { about, go, signal }) {
  const panel = h("div.home-panel", { id: "kind-panel" });
  const tabs = about.kinds.length > 1 ? makeTabs(about, (kind) => showKind(panel, kind, context), panel) : null;
  const context = { about, go, signal };
  main.replaceChildren(h("div.home", {}, tabs, panel, recentJobs(signal)));
  showKind(panel, about.kinds[0], context);
}

function makeTabs(about, choose, panel) {
  panel.setAttribute("role", "tabpanel");
  const buttons = about.kinds.map((kind, index) =>
    h(
      "button.tab",
      {
        type: "button",
        role: "tab",
        id: `tab-${kind.name}`,
        "aria-controls": "kind-panel",
        onclick: () => pick(index),
      },
      KIND_NAMES[kind.name] ?? sentence(kind.name),
    ),
  );
  function pick(index) {
    buttons.forEach((button, i) => {
      button.setAttribute("aria-selected", String(i === index));
      button.tabIndex = i === index ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", buttons[index].id);
    choose(about.kinds[index]);
  }
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const index = (buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length;
    pick(index);
    buttons[index].focus();
  };
  const list = h("div.tabs", { role: "tablist", "aria-label": "What to do", onkeydown: move }, buttons);
  buttons.forEach((button, i) => button.setAttribute("aria-selected", String(i === 0)));
  buttons.forEach((button, i) => (button.tabIndex = i === 0 ? 0 : -1));
  panel.setAttribute("aria-labelledby", buttons[0].id);
  return list;
}

function showKind(panel, kind, context) {
  const [title, lead] = TITLES[kind.name] ?? [sentence(kind.name), ""];
  const stage = h("div.stage");
  const show = (...parts) => stage.replaceChildren(...parts);
  const reset = (problem = null) =>
    show(...[problem && problemBox(problem)].filter(Boolean), dropZone(kind, take, sample));
  const take = (files) => {
    const sorted = sortFiles(files, kind);
    if (sorted.problem) reset(sorted.problem);
    else show(chosen(sorted, kind, context, () => reset(), send));
  };
  const send = (items) => sendFiles(items, kind, context, show, reset);
  const sample = async () => {
    try {
      const job = await createJob(kind.name, true);
      rememberLabel(job.id, "The embedded sample");
      context.go(`/jobs/${job.id}`);
    } catch (error) {
      failed(error, reset);
    }
  };
  panel.replaceChildren(h("h1", {}, title), h("p.lead", {}, lead), stage, promises(kind, context.about));
  reset();
}

function failed(error, reset) {
  if (error.code === "unauthorized") document.dispatchEvent(new Event("unauthorized"));
  if (error instanceof ApiError) reset(error);
  else throw error;
}

function dropZone(kind, take, sample) {
  const input = h("input.unseen", { type: "file", id: "files", multiple: true, tabindex: "-1", "aria-hidden": "true" });
  input.addEventListener("change", () => input.files.length && take([...input.files]));
  const folder = h("input.unseen", { type: "file", webkitdirectory: true, tabindex: "-1", "aria-hidden": "true" });
  folder.addEventListener("change", () => folder.files.length && take([...folder.files]));
  const zone = h(
    "div.drop",
    {},
    icon("upload"),
    h("p.drop-title", {}, "Drop the scan here"),
    h("p.drop-hint", { id: "drop-hint" }, hint(kind)),
    h(
      "div.row.centre",
      {},
      h(
        "button.primary",
        { type: "button", "aria-describedby": "drop-hint", onclick: () => input.click() },
        "Choose files",
      ),
      kind.accepts.includes("dicom") &&
        h("button", { type: "button", onclick: () => folder.click() }, "Choose a DICOM folder"),
      kind.sample && h("button", { type: "button", id: "try-sample", onclick: sample }, "Try the sample"),
    ),
    input,
    folder,
  );
  let depth = 0; // dragleave also comes from the children
  const mark = (step) => {
    depth = Math.max(0, depth + step);
    zone.classList.toggle("over", depth > 0);
  };
  zone.addEventListener("dragenter", () => mark(1));
  zone.addEventListener("dragleave", () => mark(-1));
  zone.addEventListener("dragover", (event) => event.preventDefault());
  zone.addEventListener("drop", async (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    take(await droppedFiles(event.dataTransfer));
  });
  return zone;
}

/** The files as sorted, with a role to choose for each volume. */
function chosen({ items, type }, kind, { about }, back, send) {
  const total = items.reduce((sum, item) => sum + item.file.size, 0);
  const note = h("p.note", { role: "status" });
  const go = h(
    "button.primary",
    { type: "button", onclick: () => send(items) },
    kind.name === "staging" ? "Stage it" : "Segment it",
  );
  const check = () => {
    const roles = items.map((item) => item.role);
    let problem = "";
    if (total > about.max_upload_bytes) {
      problem = `This is ${bytes(total)}; the server takes at most ${bytes(about.max_upload_bytes)}.`;
    } else if (type === "volumes" && !roles.includes(kind.roles[0])) {
      problem = `One of the files has to be the ${ROLE_NAMES[kind.roles[0]] ?? kind.roles[0]}.`;
    } else if (type === "volumes" && new Set(roles).size < roles.length) {
      problem = "Each sequence can be given once only.";
    }
    note.textContent = problem;
    go.disabled = problem !== "";
  };
  const row = (item, index) =>
    h(
      "li.file",
      {},
      icon("file"),
      h("span.file-name", {}, item.file.name, h("span.quiet-text", {}, ` ${bytes(item.file.size)}`)),
      type === "volumes" && kind.roles.length > 1 && roleSelect(item, index, kind, check),
    );
  const rows =
    type === "series" && items.length > 4
      ? [
          h(
            "li.file",
            {},
            icon("file"),
            h("span.file-name", {}, `${items.length} files`, h("span.quiet-text", {}, ` ${bytes(total)}`)),
          ),
        ]
      : items.map(row);
  const more = type === "volumes" && items.length === 1 && kind.roles.includes("t1");
  check();
  return h(
    "div.chosen",
    {},
    h("ul.files", { "aria-label": "Chosen files" }, rows),
    more &&
      h("p.quiet-text", {}, "FLAIR alone is enough. To add T1 before and after contrast, choose the files together."),
    note,
    h("div.row", {}, go, h("button", { type: "button", onclick: back }, "Choose others")),
  );
}

function roleSelect(item, index, kind, check) {
  const select = h(
    "select",
    { "aria-label": `Sequence of ${item.file.name}`, id: `role-${index}` },
    kind.roles.map((role) => h("option", { value: role, selected: role === item.role }, ROLE_NAMES[role] ?? role)),
  );
  select.addEventListener("change", () => {
    item.role = select.value;
    check();
  });
  return select;
}

/** What one wants to know before giving a scan away. */
function promises(kind, about) {
  const days = Math.round(about.keep_results_days);
  const hours = Math.round(about.keep_uploads_hours);
  const texts = [
    ["Names stay here", "Names of files are never sent, and names of patients stay out of logs and addresses."],
    kind.name === "segmentation"
      ? ["FLAIR is enough", "T1 before and after contrast are used where they are given with it."]
      : ["One slice is enough", "How sure the model is comes with the stage."],
    ["Nothing is kept for long", `The scan for ${hours} hours, the results for ${days} days; or remove them at once.`],
  ];
  return h(
    "ul.promises",
    {},
    texts.map(([title, text]) => h("li", {}, h("strong", {}, title), h("span", {}, text))),
  );
}

async function sendFiles(items, kind, { go, signal }, show, reset) {
  const stop = new AbortController();
  const leave = () => stop.abort();
  signal.addEventListener("abort", leave);
  const total = items.reduce((sum, item) => sum + item.file.size, 0);
  const bar = h("progress", { max: total, value: 0, "aria-label": "Upload" });
  const words = h("p.progress-words", {}, "Uploading…");
  const cancel = h("button", { type: "button", onclick: () => stop.abort() }, "Cancel");
  show(h("div.chosen", {}, h("h2.step-title", {}, "Uploading"), bar, words, h("div.row", {}, cancel)));
  announce("Uploading");
  const begun = performance.now();
  const sent = new Array(items.length).fill(0);
  const told = (index, count) => {
    sent[index] = Math.min(count, items[index].file.size);
    const done = sent.reduce((sum, each) => sum + each, 0);
    const elapsed = (performance.now() - begun) / 1000;
    bar.value = done;
    const left = elapsed > 1 && done ? `, ${seconds((elapsed / done) * (total - done))} left` : "";
    words.textContent = `${bytes(done)} of ${bytes(total)}${left}`;
  };
  let job = null;
  try {
    job = await createJob(kind.name);
    rememberLabel(
      job.id,
      items.length > 4 ? `${items.length} files` : items.find((item) => item.role === kind.roles[0]).file.name,
    );
    const waiting = items.map((item, index) => ({ ...item, index }));
    // The first one alone: whether the server takes this sort of file is known after it.
    const first = waiting.shift();
    await upload(job.id, first.role, first.file, (n) => told(first.index, n), stop.signal);
    const worker = async () => {
      for (let item = waiting.shift(); item; item = waiting.shift()) {
        await upload(job.id, item.role, item.file, (n) => told(item.index, n), stop.signal);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
    await startJob(job.id);
    signal.removeEventListener("abort", leave);
    go(`/jobs/${job.id}`);
  } catch (error) {
    stop.abort();
    if (job) deleteJob(job.id).catch(() => {}); // it goes by itself after a while, too
    if (error.name === "AbortError") reset();
    else failed(error, reset);
  }
}
