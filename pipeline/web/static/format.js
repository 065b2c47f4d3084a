// Numbers and names as people read them.

export function bytes(n) {
  if (n < 1000) return `${n} B`;
  if (n < 1e6) return `${(n / 1e3).toFixed(0)} kB`;
  if (n < 1e9) return `${(n / 1e6).toFixed(1)} MB`;
  return `${(n / 1e9).toFixed(2)} GB`;
}

export function ml(volume) {
  return volume.toFixed(volume < 10 ? 2 : 1);
}

export function seconds(s) {
  if (s < 1.5) return "about a second";
  if (s < 90) return `about ${Math.round(s)} seconds`;
  const minutes = Math.round(s / 60);
  return minutes < 90 ? `about ${minutes} minutes` : `about ${Math.round(minutes / 60)} hours`;
}

export function moment(iso) {
  return new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** "VeryMildDemented" -> "Very mild demented". */
export function stageName(name) {
  return sentence(
    name
      .replace(/([a-z])([A-Z])/g, "$1 $2")
      .replace(/_/g, " ")
      .toLowerCase(),
  );
}

export const KIND_NAMES = { segmentation: "Segmentation", staging: "Dementia staging" };
export const ROLE_NAMES = { flair: "FLAIR", t1: "T1", t1c: "T1 with contrast" };
