// The controls for correcting a mask.
import { ApiError, saveCorrection } from "./api.js";
import { announce, h, icon, problemBox } from "./dom.js";
import { Editor } from "./editor.js";
import { ml } from "./format.js";
import { withVoxels } from "./nifti.js";

const BRUSHES = [1, 3, 5, 9, 15];

/**
 * Make the bar. It begins with the mask that startBytes() returns, and saves with the header of the model's;
 * saved(correction) is called with what the server kept.
 */
export function makeEditBar({ viewer, bars, report, jobId, modelBytes, startBytes, saved, signal }) {
  const editor = new Editor(viewer, () => refresh());
  const warn = (event) => {
    if (editor.active && editor.strokes) event.preventDefault(); // the browser asks whether to leave
  };
  window.addEventListener("beforeunload", warn);
  signal.addEventListener("abort", () => window.removeEventListener("beforeunload", warn));

  const tool = (name, text) =>
    h(
      "button",
      { type: "button", "data-tool": name, onclick: () => choose(name) },
      icon(name === "paint" ? "pencil" : "eraser"),
      text,
    );
  const tools = [tool("paint", "Paint"), tool("erase", "Erase")];
  const brush = h(
    "select",
    { "aria-label": "Brush width in voxels" },
    BRUSHES.map((size) =>
      h("option", { value: size, selected: size === editor.brush }, size === 1 ? "1 voxel" : `${size} voxels`),
    ),
  );
  brush.addEventListener("change", () => editor.setBrush(Number(brush.value)));
  const undo = h("button", { type: "button", disabled: true, onclick: () => editor.undo() }, icon("undo"), "Undo");
  const amount = h("output.amount", { "aria-live": "polite" });
  const save = h(
    "button.primary",
    { type: "button", id: "save-correction", disabled: true, onclick: () => keep() },
    "Save correction",
  );
  const cancel = h("button", { type: "button", onclick: () => end() }, "Discard");
  const problem = h("div.edit-problem");
  const start = h(
    "button",
    { type: "button", id: "correct", onclick: () => begin() },
    icon("pencil"),
    "Correct the mask",
  );
  const bar = h(
    "div.edit-bar",
    { role: "toolbar", "aria-label": "Correct the mask", hidden: true },
    h("div.segmented", { role: "group", "aria-label": "Tool" }, tools),
    h("label.brush", {}, h("span", { "aria-hidden": "true" }, "Brush"), brush),
    undo,
    amount,
    h("span.grow"),
    cancel,
    save,
  );

  const choose = (name) => {
    editor.setTool(name);
    for (const each of tools) each.setAttribute("aria-pressed", String(each.dataset.tool === name));
  };
  const size = (step) => {
    const index = Math.min(BRUSHES.length - 1, Math.max(0, BRUSHES.indexOf(editor.brush) + step));
    brush.value = String(BRUSHES[index]);
    editor.setBrush(BRUSHES[index]);
    announce(`Brush ${BRUSHES[index]}`);
  };
  const refresh = () => {
    undo.disabled = editor.strokes === 0;
    save.disabled = editor.strokes === 0;
    const voxels = editor.voxels();
    const each = report.spacing_mm && report.spacing_mm.reduce((product, s) => product * s, 1) / 1000;
    amount.textContent = each ? `${ml(voxels * each)} ml` : `${voxels} voxels`;
  };
  const begin = async () => {
    await bars.setOverlay("mask");
    await editor.begin(startBytes());
    [bar.hidden, start.hidden] = [false, true];
    for (const each of bars.overlays.children) each.disabled = true;
    choose("paint");
    refresh();
    bars.canvas.focus({ preventScroll: true });
    announce("Paint with the mouse or a finger; Space paints at the crosshair");
  };
  const end = () => {
    editor.end();
    [bar.hidden, start.hidden] = [true, false];
    for (const each of bars.overlays.children) each.disabled = false;
    problem.replaceChildren();
    start.focus({ preventScroll: true });
  };
  const keep = async () => {
    save.disabled = true;
    try {
      const correction = await saveCorrection(jobId, await withVoxels(modelBytes, editor.result()));
      end();
      await saved(correction);
      announce(`Saved as correction ${correction.number}`);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      problem.replaceChildren(problemBox(error));
      save.disabled = false;
    }
  };
  return {
    element: h("div.edit", {}, start, bar, problem),
    begin,
    undo: () => editor.undo(),
    get active() {
      return editor.active;
    },
    keys: {
      " ": () => editor.stamp(),
      x: () => choose(editor.tool === "paint" ? "erase" : "paint"),
      "[": () => size(-1),
      "]": () => size(1),
    },
  };
}
