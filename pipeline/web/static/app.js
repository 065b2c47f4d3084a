// The page: looks at its address and shows what belongs there.
import { ApiError, getAbout, getJob, getSession, signOut } from "./api.js";
import { h, icon, problemBox } from "./dom.js";
import { showHome } from "./home.js";
import { showEnded, showProgress } from "./progress.js";
import { showResult } from "./result.js";
import { showSignIn } from "./signin.js";
import { showStaging } from "./staging.js";

const main = document.getElementById("main");
let about = null;
let leaving = null; // of the view that is shown

/** Change the address, and show what belongs there. */
function go(path) {
  history.pushState(null, "", path);
  render();
}

async function render() {
  leaving?.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  document.title = "AR2-UNet";
  document.body.classList.remove("wide");
  try {
    about ??= await showAbout();
    const session = await getSession();
    if (signal.aborted) return;
    document.getElementById("sign-out").hidden = !(session.required && session.authenticated);
    const id = location.pathname.match(/^\/jobs\/([^/]+)$/)?.[1];
    document.getElementById("new-scan").hidden = !id;
    if (id) await showJob(id, signal);
    else if (session.authenticated) showHome(main, { about, go, signal });
    else showSignIn(main, render);
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    if (!(error instanceof ApiError)) throw error;
    if (error.code === "unauthorized") showSignIn(main, render);
    else showProblem(error);
  }
}

async function showJob(id, signal) {
  const job = await getJob(id, signal);
  if (signal.aborted) return;
  const show = (finished) => {
    document.body.classList.toggle("wide", finished.kind === "segmentation");
    const view = finished.kind === "segmentation" ? showResult : showStaging;
    view(main, finished, { about, go, signal }).catch((error) => {
      if (error.name !== "AbortError") showProblem(error);
    });
  };
  if (job.state === "finished") show(job);
  else if (job.progress) await showProgress(main, job, { go, signal, ended: show });
  else showEnded(main, job, go);
}

function showProblem(error) {
  const retry = h("button.primary", { type: "button", onclick: render }, "Try again");
  const home = h("a.button", { href: "/", "data-route": true }, "To the first page");
  const box = problemBox({ message: error.message, advice: error.advice }, retry, home);
  main.replaceChildren(h("div.home", {}, h("section.working", {}, h("h1", {}, "This did not work"), box)));
}

async function showAbout() {
  const found = await getAbout();
  document.getElementById("notice").textContent = found.notice;
  document
    .getElementById("versions")
    .replaceChildren(
      `ar2unet ${found.version} · model ${found.bundle.version} · ${found.engine} · `,
      h("a", { href: "/static/licences/niivue.txt" }, "NiiVue"),
    );
  return found;
}

function showTheme() {
  const dark = document.documentElement.dataset.theme === "dark";
  const button = document.getElementById("theme");
  button.setAttribute("aria-label", dark ? "Light appearance" : "Dark appearance");
  button.title = dark ? "Light appearance" : "Dark appearance (reading room)";
  button.replaceChildren(icon(dark ? "sun" : "moon"));
}

document.getElementById("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // storage is switched off: it lasts as long as the page
  }
  showTheme();
});
document.getElementById("sign-out").addEventListener("click", async () => {
  await signOut();
  go("/");
});
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-route]");
  if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(link.getAttribute("href"));
  main.focus({ preventScroll: true });
});
document.addEventListener("unauthorized", () => showSignIn(main, render));
// What fails after a click, and has no place of its own to say so.
window.addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name === "AbortError") event.preventDefault(); // the view was left
  if (!(event.reason instanceof ApiError)) return;
  event.preventDefault();
  const toast = h("div.toast");
  toast.append(problemBox(event.reason, h("button", { type: "button", onclick: () => toast.remove() }, "Close")));
  for (const old of document.querySelectorAll(".toast")) old.remove();
  document.body.append(toast);
});
// A file dropped beside the drop zone must not replace the page.
for (const type of ["dragover", "drop"]) document.addEventListener(type, (event) => event.preventDefault());
window.addEventListener("popstate", render);

showTheme();
render();
