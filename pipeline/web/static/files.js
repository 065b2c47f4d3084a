// From what a person drops to what is uploaded: which files, in which role.

const VOLUME = /\.(nii|nii\.gz|nrrd|nhdr|mha|mhd)$/i;
const ZIP = /\.zip$/i;
const IMAGE = /\.(png|jpe?g)$/i;
const HIDDEN = /^\.|^(DICOMDIR|Thumbs\.db|desktop\.ini)$/i;

/** Return all files of a drop; folders are opened. */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const files = [];
  for (const entry of entries) await collect(entry, files);
  return files;
}

async function collect(entry, files) {
  if (entry.isFile) {
    files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at most
    if (!some.length) return;
    for (const child of some) await collect(child, files);
  }
}

function guessRole(name) {
  const plain = name.toLowerCase();
  if (/flair/.test(plain)) return "flair";
  if (/t1c|t1ce|t1gd|t1[-_ ]?post|gad|contrast|ce-/.test(plain)) return "t1c";
  if (/t1/.test(plain)) return "t1";
  return null;
}

/** Give each volume a role by its name; what says nothing gets what is left, FLAIR first. */
function assignRoles(files, roles) {
  const items = files.map((file) => ({ file, role: guessRole(file.name) }));
  const taken = new Set();
  for (const item of items) {
    if (!roles.includes(item.role) || taken.has(item.role)) item.role = null;
    else taken.add(item.role);
  }
  for (const item of items) {
    if (item.role !== null) continue;
    item.role = roles.find((role) => !taken.has(role)) ?? roles[0];
    taken.add(item.role);
  }
  if (items.length && !taken.has(roles[0])) items[0].role = roles[0];
  return items;
}

/**
 * Sort files into what one job takes.
 * Returns {items: [{file, role}], type: "volumes" | "series" | "zip" | "image"} or {problem}.
 */
export function sortFiles(files, kind) {
  const kept = files.filter((file) => !HIDDEN.test(file.name) && file.size > 0);
  if (!kept.length) return { problem: { message: "There is no file with content in this.", advice: hint(kind) } };
  const of = (pattern) => kept.filter((file) => pattern.test(file.name));
  const [volumes, zips, images] = [of(VOLUME), of(ZIP), of(IMAGE)];
  const one = (list, what) =>
    list.length === kept.length
      ? null
      : { message: `${what} and other files were given together.`, advice: "Give files of one sort at a time." };
  if (volumes.length) {
    const mixed = one(volumes, "Volumes");
    if (mixed) return { problem: mixed };
    if (volumes.length > kind.roles.length) {
      const message = `${volumes.length} volumes were given; one scan has at most ${kind.roles.length}.`;
      return {
        problem: { message, advice: "Give the FLAIR of one patient, and its T1 before and after contrast if at hand." },
      };
    }
    return { items: assignRoles(volumes, kind.roles), type: "volumes" };
  }
  const whole = (type) => ({ items: kept.map((file) => ({ file, role: kind.roles[0] })), type });
  if (zips.length) {
    if (kept.length > 1)
      return { problem: { message: "A zip is given by itself.", advice: "Give one zip of one study." } };
    return whole("zip");
  }
  if (images.length) {
    if (!kind.accepts.includes("png")) {
      const message = `${images[0].name} is a picture; a scan has voxels and a position in space.`;
      return { problem: { message, advice: hint(kind) } };
    }
    if (kept.length > 1) return { problem: { message: "One picture at a time.", advice: "Give a single slice." } };
    return whole("image");
  }
  return whole("series");
}

const FORMATS = {
  nifti: "NIfTI (.nii, .nii.gz)",
  nrrd: "NRRD",
  metaimage: "MetaImage (.mha)",
  dicom: "the files of a DICOM series",
  zip: "a zip of DICOM files",
  png: "PNG",
  jpeg: "JPEG",
};

/** Say what a kind takes. */
export function hint(kind) {
  const names = kind.accepts.map((format) => FORMATS[format] ?? format);
  return `Give ${names.slice(0, -1).join(", ")}${names.length > 1 ? " or " : ""}${names.at(-1)}.`;
}
