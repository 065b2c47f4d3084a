// A finished segmentation: the viewer, and beside it what was measured.
import { deleteJob, download, getReport } from "./api.js";
import { announce, h, icon, problemBox } from "./dom.js";
import { bytes } from "./format.js";
import { labelOf } from "./labels.js";
import { corrections, downloads, facts, lesions, made, verdict } from "./panel.js";
import { loadNiivue, Viewer } from "./viewer.js";
import { makeBars } from "./viewer_bars.js";
import { maskVoxels, unpack } from "./nifti.js";
import { makeEditBar } from "./edit_bar.js";

const INSTALL = {
  message: "The viewer is not installed on this server; everything else works.",
  advice:
    "Install it with `make install` (or `python -m pipeline.web.viewer`) where the server runs, then reload this page.",
};
const NO_WEBGL = {
  message: "This browser cannot draw the scan: it has no WebGL 2, or it is switched off.",
  advice:
    "Use a current Firefox, Chrome, Edge or Safari with hardware acceleration, or open the downloaded mask elsewhere.",
};
const SCAN_GONE = {
  message: "The scan itself has been removed from the server after its retention time.",
  advice: "Its results are still here; to look at it in 3D again, upload it once more.",
};

/** Fill main with a finished job. */
export async function showResult(main, job, { go, signal }) {
  const result = (role) => job.results.find((each) => each.role === role);
  const report = await getReport(result("report").url);
  if (signal.aborted) return;
  const stage = h("section.viewer", { "aria-label": "Viewer", "aria-busy": "true" });
  const state = { job, viewer: null, jump: null };
  const side = h("aside.panel", { "aria-label": "Results" });
  const masks = h("div");
  fillPanel(side, masks, report, state, { go, main });
  main.replaceChildren(h("div.result", {}, stage, side));
  document.title = `${labelOf(job) ?? "Result"} · AR2-UNet`;
  announce("The result is here.");
  await fillViewer(stage, masks, report, state, signal, result);
}

function fillPanel(side, masks, report, state, { go, main }) {
  const { job } = state;
  const copy = h("button", { type: "button", onclick: () => copyLink(copy) }, icon("link"), "Copy link");
  const remove = h(
    "button",
    { type: "button", onclick: () => confirmRemove(remove, job, go, main) },
    icon("bin"),
    "Remove",
  );
  const words = "Everybody who has the link and reaches this server can see this result.";
  side.replaceChildren(
    h("h1", {}, labelOf(job) ?? "FLAIR abnormality"),
    verdict(report),
    facts(report),
    lesions(report, (mm, index) => {
      state.jump?.(mm);
      announce(`Lesion ${index + 1} is at the crosshair`);
    }),
    masks,
    downloads(job),
    made(job, report),
    h("div.row.panel-actions", {}, copy, remove),
    h("p.quiet-text", {}, words),
  );
}

async function copyLink(button) {
  try {
    await navigator.clipboard.writeText(location.href);
    button.lastChild.textContent = "Copied";
    announce("The link is in the clipboard");
  } catch {
    button.lastChild.textContent = "Copy it from the address bar"; // not allowed, or not a secure page
  }
}

async function confirmRemove(button, job, go) {
  if (button.dataset.sure) {
    await deleteJob(job.id);
    go("/");
    return;
  }
  button.dataset.sure = "yes";
  button.classList.add("danger");
  button.lastChild.textContent = "Remove all its files?";
  announce("Press again to remove this job and all its files");
}

async function fillViewer(stage, masks, report, state, signal, result) {
  const overlay = result("overlay");
  const fallBack = (problem) => {
    const picture =
      overlay && h("img.overlay-picture", { src: overlay.url, alt: "Axial slices with the outline of the mask" });
    stage.replaceChildren(h("div.viewer-problem", {}, problemBox(problem), picture));
    stage.setAttribute("aria-busy", "false");
  };
  const words = h("p", {}, "Loading the scan…");
  const bar = h("progress", { "aria-label": "Loading the scan", max: 1 });
  const veil = h("div.veil", {}, words, bar);
  stage.replaceChildren(veil);
  if (!state.job.scan) return fallBack(SCAN_GONE);
  try {
    await loadNiivue();
  } catch {
    return fallBack(INSTALL);
  }
  const { scan } = state.job;
  const told = (n, total) => {
    bar.value = n / total;
    words.textContent = `Loading the scan: ${bytes(n)} of ${bytes(total)}`;
  };
  const [scanFile, maskFile] = await Promise.all([
    download(scan.url, scan.bytes, told, signal),
    download(result("mask").url, result("mask").bytes, () => {}, signal),
  ]);
  const [scanBytes, maskBytes] = await Promise.all([unpack(scanFile), unpack(maskFile)]);
  if (signal.aborted) return;
  const load = async (url) => unpack(await download(url, 0, () => {}, signal));
  const bars = makeBars({
    hasSpacing: report.spacing_mm !== null,
    probabilities: () => load(result("probabilities").url),
  });
  stage.replaceChildren(bars.top, h("div.canvas-box", {}, bars.canvas, veil), bars.bottom);
  const viewer = new Viewer(bars.canvas, bars.onMove);
  signal.addEventListener("abort", () => viewer.close());
  try {
    await viewer.open(scanBytes, maskBytes.slice());
  } catch (error) {
    console.error(error);
    return fallBack(NO_WEBGL);
  }
  if (signal.aborted) return;
  bars.attach(viewer);
  veil.remove();
  state.viewer = viewer;
  state.jump = (mm) => {
    viewer.goTo(mm);
    bars.canvas.scrollIntoView({ block: "nearest", behavior: "smooth" });
  };
  const first = report.lesions[0]?.centre_ras_mm;
  if (first) viewer.goTo(first);
  connectMasks(masks, maskBytes, report, state, bars, load, signal);
  stage.setAttribute("aria-busy", "false");
}

/** The model's mask, its corrections, and making a new one. */
function connectMasks(masks, modelBytes, report, state, bars, load, signal) {
  const { viewer } = state;
  let shown = 0;
  let shownBytes = modelBytes;
  const render = () => masks.replaceChildren(corrections(state.job, shown, show));
  const show = async (correction) => {
    shownBytes = correction ? await load(correction.url) : modelBytes;
    shown = correction?.number ?? 0;
    viewer.setMask(maskVoxels(shownBytes).slice());
    render();
  };
  const edit = makeEditBar({
    viewer,
    bars,
    report,
    jobId: state.job.id,
    modelBytes,
    startBytes: () => shownBytes,
    saved: async (correction) => {
      state.job.corrections.push(correction);
      await show(correction);
    },
    signal,
  });
  bars.connectEditing(edit);
  render();
}
