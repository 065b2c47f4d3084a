// Building elements. Text is always text: nothing here, nor elsewhere in the page, parses HTML.

/**
 * Make an element: h("button.primary", {type: "button", onclick: go}, "Go").
 * A prop that starts with "on" is a listener, null or false leaves it out, true sets it empty.
 */
export function h(selector, props = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const PATHS = {
  upload: "M12 16V5m0 0-4 4m4-4 4 4M5 15v3a2 2 0 0 0 2 2h10a2 2 0 0 0 2-2v-3",
  file: "M7 3h7l4 4v13a1 1 0 0 1-1 1H7a1 1 0 0 1-1-1V4a1 1 0 0 1 1-1Zm7 0v4h4",
  download: "M12 4v11m0 0-4-4m4 4 4-4M5 19h14",
  camera: "M4 8h3l2-2h6l2 2h3v11H4Zm8 8.5a3.2 3.2 0 1 0 0-6.4 3.2 3.2 0 0 0 0 6.4Z",
  pencil: "m4 20 1-4L16.5 4.500l3 3L8 19Zm10-13 3 3",
  eraser: "m8 19-4-4 9.500-9.500 6 6L12 19Zm0 0h11M9 10l5 5",
  undo: "M9 6 5 10l4 4M5 10h9a5 5 0 0 1 0 10h-2",
  sun: "M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8Zm0-13v2m0 14v2M3 12h2m14 0h2M5.600 5.600 7 7m10 10 1.400 1.400M5.600 18.400 7 17M17 7l1.400-1.400",
  moon: "M19 14.500A7.500 7.500 0 0 1 9.500 5a7.500 7.500 0 1 0 9.500 9.500Z",
  target: "M12 19a7 7 0 1 0 0-14 7 7 0 0 0 0 14Zm0-17v5m0 10v5M2 12h5m10 0h5",
  check: "m5 12.500 4.500 4.500L19 7.500",
  alert: "M12 4 2.500 20h19Zm0 6v4.500m0 2.500v.2",
  link: "M10 14a4 4 0 0 0 5.700 0l3-3A4 4 0 0 0 13 5.300l-1 1M14 10a4 4 0 0 0-5.700 0l-3 3A4 4 0 0 0 11 18.700l1-1",
  bin: "M5 7h14M10 7V4.500h4V7m-7.500 0 1 13h9l1-13",
  close: "M6 6l12 12M18 6 6 18",
  help: "M9 9.500a3 3 0 1 1 4.500 2.600c-1 .6-1.500 1.100-1.500 2.200m0 3v.2",
};

/** Return a drawing of 24 units; it says nothing to a screen reader. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Say something to a screen reader. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}

/** Return a box that says what is wrong and what to do next. */
export function problemBox(problem, ...actions) {
  return h(
    "div.problem",
    { role: "alert" },
    icon("alert"),
    h(
      "div",
      {},
      h("p.problem-message", {}, problem.message),
      problem.advice ? h("p.problem-advice", {}, problem.advice) : null,
      actions.length ? h("div.row", {}, actions) : null,
    ),
  );
}
