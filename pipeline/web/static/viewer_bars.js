// The controls around the canvas, its keys, and what is under the crosshair.
import { announce, h, icon } from "./dom.js";

const VIEWS = { four: "All", axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", render: "3D" };
const OVERLAYS = { mask: "Mask", probability: "Probability", none: "None" };
const CAPTION = "AR2-UNet · for research use only, not for diagnosis or treatment";
const KEYS = [
  ["← → ↑ ↓", "move the crosshair in the plane last touched; turn the 3D view"],
  ["Page ↑ / ↓ or . ,", "next or previous slice (the wheel does the same)"],
  ["1 – 5", "all, axial, coronal, sagittal, 3D"],
  ["M, P", "mask or probability on and off"],
  ["+ − 0", "zoom in, out, fit"],
  ["W", "window as at the start (right button and drag changes it)"],
  ["S", "save a picture"],
  [
    "E",
    "correct the mask; then Space paints at the crosshair, X changes between paint and erase, [ ] the brush, Ctrl Z undoes",
  ],
];

/** A group of buttons of which one is pressed. */
function segmented(label, names, chosen, choose) {
  const buttons = new Map();
  const press = (name) => {
    for (const [each, button] of buttons) button.setAttribute("aria-pressed", String(each === name));
  };
  for (const [name, text] of Object.entries(names)) {
    buttons.set(name, h("button", { type: "button", "data-name": name, onclick: () => choose(name) }, text));
  }
  press(chosen);
  return { element: h("div.segmented", { role: "group", "aria-label": label }, [...buttons.values()]), press };
}

function slider(label, props, oninput) {
  const input = h("input", { type: "range", "aria-label": label, ...props });
  let asked = false;
  input.addEventListener("input", () => {
    if (asked) return; // one drawing a frame is enough
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      oninput(Number(input.value));
    });
  });
  return input;
}

/** Make the bars; attach(viewer) brings them to life. */
export function makeBars({ hasSpacing, probabilities }) {
  let viewer = null;
  let editing = null;
  const canvas = h("canvas", {
    id: "scan",
    role: "application",
    tabindex: "0",
    "aria-label": "Scan with the mask. The arrow keys move the crosshair, page up and down change the slice.",
    "aria-describedby": "readout",
  });
  const views = segmented("View", VIEWS, "four", (name) => setView(name));
  const overlays = segmented("Overlay", OVERLAYS, "mask", (name) => setOverlay(name));
  const opacity = slider("Overlay opacity", { min: 0, max: 1, step: 0.02, value: 0.46 }, (value) =>
    viewer?.setOpacity(value),
  );
  const colours = { hidden: true, role: "img", "aria-label": "Colours of the probability, from 0 to 1" };
  const legend = h("span.legend", colours, h("span", {}, "0"), h("i"), h("span", {}, "1"));
  const width = slider("Window width", {}, () => changeWindow());
  const level = slider("Window level", {}, () => changeWindow());
  const windowText = h("output.window-text");
  const readout = h("p.readout", { id: "readout" });
  const editSlot = h("div.edit-slot");

  const setView = (name) => {
    views.press(name);
    viewer.setView(name);
  };
  const setOverlay = async (name) => {
    const mark = (each) => {
      overlays.press(each);
      legend.hidden = each !== "probability";
    };
    mark(name);
    try {
      await viewer.setOverlay(name, probabilities);
    } catch (error) {
      mark(viewer.overlay);
      throw error;
    }
  };
  const toggle = (name) => setOverlay(viewer.overlay === name ? "none" : name);
  const showWindow = () => {
    const now = viewer.window;
    width.value = now.width;
    level.value = now.level;
    windowText.textContent = `W ${round(now.width)} · L ${round(now.level)}`;
  };
  const changeWindow = () => {
    viewer.setWindow({ width: Number(width.value), level: Number(level.value) });
    showWindow();
  };
  const resetWindow = () => {
    viewer.resetWindow();
    showWindow();
  };
  const shoot = async () => {
    const url = URL.createObjectURL(await viewer.screenshot(CAPTION));
    h("a", { href: url, download: "flair_view.png" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    announce("The picture is saved");
  };
  const shootButton = h(
    "button.icon-button",
    { type: "button", id: "screenshot", title: "Save a picture (S)", "aria-label": "Save a picture", onclick: shoot },
    icon("camera"),
  );
  const onMove = (place) => readout.replaceChildren(...describe(place, hasSpacing));

  const attach = (opened) => {
    viewer = opened;
    const [low, high] = viewer.range;
    const step = "any"; // a hundredth of the whole for the arrow keys
    Object.assign(width, { min: String((high - low) / 500), max: String(high - low), step });
    Object.assign(level, { min: String(low), max: String(high), step });
    showWindow();
    for (const type of ["pointerup", "dblclick"])
      canvas.addEventListener(type, () => requestAnimationFrame(showWindow));
    canvas.addEventListener("keydown", onKey);
  };
  const onKey = (event) => {
    const act = keyAction(event, { viewer, editing, setView, toggle, resetWindow, shoot });
    if (!act) return;
    event.preventDefault();
    act();
    if (event.key.startsWith("Arrow") || event.key.startsWith("Page")) announceLater(readout);
  };
  const connectEditing = (edit) => {
    editing = edit;
    editSlot.replaceChildren(edit.element);
  };
  const top = h(
    "div.bar.top-bar",
    {},
    views.element,
    h("span.grow"),
    overlays.element,
    legend,
    h("label.opacity", {}, h("span", { "aria-hidden": "true" }, "Opacity"), opacity),
    h("span.icon-buttons", {}, shootButton, helpButton()),
  );
  const bottom = h(
    "div.bar.bottom-bar",
    {},
    readout,
    h(
      "div.window-controls",
      { role: "group", "aria-label": "Window and level" },
      h("label", {}, h("span", { "aria-hidden": "true" }, "Window"), width),
      h("label", {}, h("span", { "aria-hidden": "true" }, "Level"), level),
      windowText,
      h("button.small", { type: "button", onclick: resetWindow }, "Reset"),
    ),
    h("span.grow"),
    editSlot,
  );
  return { canvas, top, bottom, onMove, attach, connectEditing, setOverlay, overlays: overlays.element };
}

function keyAction(event, { viewer, editing, setView, toggle, resetWindow, shoot }) {
  const { key } = event;
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "z")
    return editing?.active ? () => editing.undo() : null;
  if (event.ctrlKey || event.metaKey || event.altKey) return null;
  const step = event.shiftKey ? 5 : 1;
  const moves = {
    ArrowLeft: [-step, 0, 0],
    ArrowRight: [step, 0, 0],
    ArrowUp: [0, step, 0],
    ArrowDown: [0, -step, 0],
    PageUp: [0, 0, 1],
    PageDown: [0, 0, -1],
    ".": [0, 0, 1],
    ",": [0, 0, -1],
  };
  if (moves[key]) return () => viewer.move(...moves[key]);
  const view = Object.keys(VIEWS)[Number(key) - 1];
  if (view) return () => setView(view);
  if (editing?.active && editing.keys[key.toLowerCase()]) return editing.keys[key.toLowerCase()];
  return {
    m: () => !editing?.active && toggle("mask"),
    p: () => !editing?.active && toggle("probability"),
    "+": () => viewer.zoom(1.25),
    "=": () => viewer.zoom(1.25),
    "-": () => viewer.zoom(0.8),
    0: () => viewer.zoom(0),
    w: resetWindow,
    s: shoot,
    e: editing && !editing.active ? () => editing.begin() : null,
  }[key.toLowerCase()];
}

let saying = null;

/** Tell a screen reader where the crosshair is, once it has come to rest. */
function announceLater(readout) {
  clearTimeout(saying);
  saying = setTimeout(() => announce(readout.textContent), 600);
}

const round = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));

function describe(place, hasSpacing) {
  const part = (label, value, kind = "") =>
    h(`span.reading${kind}`, {}, h("span.reading-label", {}, label), ` ${value} `);
  const letters = ["RL", "AP", "SI"];
  const mm = place.mm.map((value, i) => `${letters[i][value >= 0 ? 0 : 1]} ${Math.abs(value).toFixed(1)}`).join("  ");
  const { axial, coronal, sagittal } = place.slices;
  return [
    hasSpacing ? part("Position", `${mm} mm`) : null,
    part("Slice", `ax ${axial[0]}/${axial[1]}  cor ${coronal[0]}/${coronal[1]}  sag ${sagittal[0]}/${sagittal[1]}`),
    part("Intensity", round(place.intensity)),
    place.probability === null ? null : part("Probability", place.probability.toFixed(2)),
    place.inMask ? part("", "in the mask", ".in-mask") : null,
  ].filter(Boolean);
}

function helpButton() {
  const rows = KEYS.flatMap(([keys, text]) => [h("dt", {}, keys), h("dd", {}, text)]);
  const dialog = h(
    "dialog.help",
    { "aria-labelledby": "keys-title" },
    h("h2", { id: "keys-title" }, "Keys"),
    h("p.quiet-text", {}, "They work while the picture has the focus: click it, or reach it with Tab."),
    h("dl", {}, rows),
    h("div.row", {}, h("button.primary", { type: "button", onclick: () => dialog.close() }, "Close")),
  );
  const open = () => dialog.showModal();
  const button = h(
    "button.icon-button",
    { type: "button", title: "Keys", "aria-label": "Keys", onclick: open },
    icon("help"),
  );
  return h("span", {}, button, dialog);
}
