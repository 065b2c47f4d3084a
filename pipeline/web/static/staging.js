// A finished staging of dementia: the picture, the probabilities with their spread, and why.
import { getReport } from "./api.js";
import { announce, h } from "./dom.js";
import { stageName } from "./format.js";
import { labelOf } from "./labels.js";
import { downloads, verdictBox } from "./panel.js";

/** Fill main with a finished job. */
export async function showStaging(main, job, { signal }) {
  const result = (role) => job.results.find((each) => each.role === role);
  const report = await getReport(result("report").url);
  if (signal.aborted) return;
  document.title = `${labelOf(job) ?? "Result"} · AR2-UNet`;
  main.replaceChildren(
    h(
      "div.result.staging",
      {},
      pictures(result("saliency")),
      h(
        "aside.panel",
        { "aria-label": "Results" },
        h("h1", {}, labelOf(job) ?? "Dementia stage"),
        stageVerdict(report),
        probabilities(report),
        downloads(job),
      ),
    ),
  );
  announce("The result is here.");
}

function stageVerdict({ stage, sure, warnings, cdr }) {
  const name = `${stageName(stage)} (CDR ${cdr})`;
  const title = !sure ? "Not sure" : stage === "NonDemented" ? "No dementia" : "Dementia";
  const text = sure
    ? `Likeliest: ${name}. How far it has come is rarely sure. Not a diagnosis.`
    : `The model does not commit itself: ${name} is only the likeliest. Not a diagnosis.`;
  return verdictBox(sure ? "trusted" : "review", title, text, warnings);
}

/** The spread of one stage as [low, high]: the report gives both, or how far it goes to each side. */
function interval(value, spread) {
  if (spread === undefined || spread === null) return null;
  const [low, high] = Array.isArray(spread) ? spread : [value - spread, value + spread];
  return [Math.max(0, low), Math.min(1, high)];
}

function probabilities({ probabilities: values, spread = {}, stage }) {
  const percent = (value) => `${Math.round(100 * value)} %`;
  const row = ([name, value]) => {
    const range = interval(value, spread?.[name]);
    const fill = h("span.bar-fill");
    fill.style.width = `${100 * value}%`;
    const whisker = range && h("span.bar-spread");
    if (whisker) {
      whisker.style.left = `${100 * range[0]}%`;
      whisker.style.width = `${100 * (range[1] - range[0])}%`;
    }
    return h(
      `li.stage-row${name === stage ? ".likeliest" : ""}`,
      {},
      h("span.stage-name", {}, stageName(name)),
      h(
        "span.stage-value",
        {},
        percent(value),
        range && h("span.quiet-text", {}, ` ${percent(range[0])} to ${percent(range[1])}`),
      ),
      h("span.bar-track", { "aria-hidden": "true" }, fill, whisker),
    );
  };
  return h(
    "section.block",
    {},
    h("h2", {}, "Probabilities"),
    h("ul.stages", {}, Object.entries(values).map(row)),
    h("p.quiet-text", {}, "Calibrated on unseen subjects. The thin line of a volume: what its single slices say, 10th to 90th percentile."),
  );
}

function pictures(saliency) {
  // One picture of the slice and of what each place adds, with its legend: drawn by the library, as for the command line.
  const picture = saliency
    ? h("img.saliency", { src: saliency.url, alt: "The slice, and beside it what each place adds to the answer" })
    : h("p.quiet-text", {}, "There is no picture of this result.");
  return h("section.viewer.pictures", { "aria-label": "Picture" }, h("div.layers", {}, picture));
}
