// What stands beside the viewer: how far to trust the mask, what was measured, and what to take home.
import { h, icon } from "./dom.js";
import { bytes, ml, moment, sentence } from "./format.js";

/** Say in plain words how far a mask can be trusted. */
export function verdict(report) {
  const { confidence, warnings } = report;
  let [kind, title, text] = [
    "unknown",
    "How far to trust this mask is not known",
    "The network was not assessed: look at every slice.",
  ];
  if (confidence && report.lesion_count === 0) {
    kind = confidence.review ? "review" : "unknown"; // a Dice says little about a mask of nothing
    title = confidence.review ? "Review this case: nothing was found" : "Nothing was found";
    text = "A small or faint lesion may have been missed: look at the slices.";
  } else if (confidence) {
    const dice = confidence.predicted_dice.toFixed(2);
    kind = confidence.review ? "review" : "trusted";
    title = confidence.review ? "Review this case" : "No doubt raised";
    text = `Expected agreement with an expert's outline: Dice ${dice} (1 is perfect; experts reach about 0.84 among themselves).`;
  }
  return verdictBox(kind, title, text, warnings);
}

/** The box at the top of a result: kind is trusted, review or unknown. */
export function verdictBox(kind, title, text, warnings) {
  return h(
    `section.verdict.${kind}`,
    { "aria-labelledby": "verdict-title" },
    icon(kind === "trusted" ? "check" : "alert"),
    h(
      "div",
      {},
      h("h2", { id: "verdict-title" }, title),
      h("p", {}, text),
      warnings.length
        ? h(
            "ul",
            {},
            warnings.map((warning) => h("li", {}, sentence(warning))),
          )
        : null,
    ),
  );
}

/** The figures that are looked for first. */
export function facts(report) {
  const interval = report.volume_interval_ml;
  const volume = report.volume_ml;
  const amount = volume === null ? `${report.lesion_voxels.toLocaleString("en")}` : ml(volume);
  const unit = volume === null ? "voxels" : "ml";
  let note = report.volume_interval_note;
  if (volume === null) note = report.volume_note;
  else if (interval) note = `${ml(interval[0])} to ${ml(interval[1])} ml if the agreement is as expected`;
  const cell = (label, value, more) =>
    h("div.fact", {}, h("dt", {}, label), h("dd.value", {}, value), h("dd.more", {}, more));
  const side = report.laterality;
  const left = side && Math.round(100 * side.left_fraction);
  const share = left >= 50 ? `${left} % on the patient's left` : `${100 - left} % on the patient's right`;
  return h(
    "dl.facts",
    {},
    h(
      "div.fact.main-fact",
      {},
      h("dt", {}, "Volume"),
      h("dd.value", { id: "volume" }, amount, h("span.unit", {}, ` ${unit}`)),
      h("dd.more", { title: report.volume_interval_note }, note),
    ),
    cell("Lesions", String(report.lesion_count), "connected regions"),
    report.lesion_count
      ? cell("Side", side ? sentence(side.side) : "Not known", side ? share : "the scan does not state it")
      : null,
    cell("Slices", String(report.slices_with_lesion), `of ${report.slices_total} axial ones`),
  );
}

/** The lesions, the largest first; jump(mm, index) is called for the one that was chosen. */
export function lesions(report, jump) {
  if (!report.lesions.length)
    return h("section.block", {}, h("h2", {}, "Lesions"), h("p.quiet-text", {}, "None was found."));
  const row = (lesion, index) => {
    const size = lesion.volume_ml === null ? `${lesion.voxels} voxels` : `${ml(lesion.volume_ml)} ml`;
    const wide = lesion.diameters;
    const details = [
      lesion.side,
      wide && `${wide.longest_mm.toFixed(1)} × ${wide.perpendicular_mm.toFixed(1)} mm`,
      wide && `slice ${wide.slice}`,
    ].filter(Boolean);
    return h(
      "li",
      {},
      h(
        "button.lesion",
        {
          type: "button",
          disabled: !jump || !lesion.centre_ras_mm,
          "aria-label": `Lesion ${index + 1}, ${size}, ${details.join(", ")}: show it`,
          onclick: () => jump(lesion.centre_ras_mm, index),
        },
        h("span.number", {}, String(index + 1)),
        h("span.lesion-size", {}, size),
        h("span.lesion-more", {}, details.join(" · ")),
        icon("target"),
      ),
    );
  };
  return h("section.block", {}, h("h2", {}, "Lesions"), h("ol.lesions", {}, report.lesions.map(row)));
}

const DOWNLOADS = {
  mask: "Mask (NIfTI)",
  segmentation: "Mask (DICOM SEG)",
  page: "Report (HTML)",
  report: "Report (JSON)",
  probabilities: "Probabilities (NIfTI)",
  overlay: "Overlay (PNG)",
  mesh: "Surface (STL)",
  saliency: "Saliency (PNG)",
};

/** The files of a job. */
export function downloads(job) {
  const order = Object.keys(DOWNLOADS);
  const rank = (result) => (order.includes(result.role) ? order.indexOf(result.role) : order.length);
  const row = (result) =>
    h(
      "li",
      {},
      h(
        "a.download",
        { href: result.url, download: result.name, "data-role": result.role ?? "" },
        icon("download"),
        h("span", {}, DOWNLOADS[result.role] ?? result.name),
        h("span.quiet-text", {}, bytes(result.bytes)),
      ),
      result.role === "page" &&
        h(
          "a.open",
          { href: result.url, target: "_blank", rel: "noopener" },
          "Open",
          h("span.unseen", {}, " the report"),
        ),
    );
  return h(
    "section.block",
    { "aria-labelledby": "downloads-title" },
    h("h2", { id: "downloads-title" }, "Take home"),
    h("ul.downloads", {}, [...job.results].sort((a, b) => rank(a) - rank(b)).map(row)),
  );
}

/** The masks that a person corrected; show(correction or null) puts one, or the model's, over the scan. */
export function corrections(job, shown, show) {
  if (!job.corrections.length) return h("div");
  const choice = (correction, title, more) =>
    h(
      "label.choice",
      {},
      h("input", {
        type: "radio",
        name: "shown-mask",
        checked: (correction?.number ?? 0) === shown,
        onchange: () => show(correction),
      }),
      h("span", {}, title, h("span.quiet-text", {}, ` ${more}`)),
    );
  const row = (correction) =>
    h(
      "div.correction",
      {},
      choice(correction, `Correction ${correction.number}`, moment(correction.saved)),
      h(
        "a",
        { href: correction.url, download: correction.name },
        "Mask",
        h("span.unseen", {}, ` of correction ${correction.number}`),
      ),
      h(
        "a",
        { href: correction.provenance_url, download: `correction_${correction.number}.json` },
        "Provenance",
        h("span.unseen", {}, ` of correction ${correction.number}`),
      ),
    );
  return h(
    "fieldset.block.corrections",
    {},
    h("legend", {}, "Mask shown"),
    h("div.correction", {}, choice(null, "Model", "as computed")),
    job.corrections.map(row),
  );
}

/** How the result was made. */
export function made(job, report) {
  const rows = [
    ["Model", `${report.bundle.name} ${report.bundle.version}`],
    ["Weights", `${report.weights_sha256.slice(0, 12)}…`],
    ["Engine", report.engine],
    ["Time", `${report.seconds.total.toFixed(1)} s, of it ${report.seconds.network.toFixed(1)} s in the network`],
    [
      "Grid",
      `${report.shape.join(" × ")} voxels${report.spacing_mm ? `, ${report.spacing_mm.map((s) => s.toFixed(2)).join(" × ")} mm` : ""}`,
    ],
    ["Kept until", job.removed_at ? moment(job.removed_at) : null],
  ].filter(([, value]) => value);
  return h(
    "details.block.made",
    {},
    h("summary", {}, "How it was made"),
    h(
      "dl",
      {},
      rows.flatMap(([label, value]) => [h("dt", {}, label), h("dd", {}, value)]),
    ),
    report.notes.length
      ? h(
          "ul",
          {},
          report.notes.map((note) => h("li", {}, sentence(note))),
        )
      : null,
  );
}
