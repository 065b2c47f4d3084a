// Runs before the first paint, so that a dark room is not lit up by a white page.
"use strict";
{
  let kept = null;
  try {
    kept = localStorage.getItem("theme");
  } catch {
    // storage is switched off: what the system prefers, then
  }
  const system = matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark";
  document.documentElement.dataset.theme = kept === "light" || kept === "dark" ? kept : system;
}
