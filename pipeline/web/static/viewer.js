// The viewer: what NiiVue is asked to do. No other module but the editor speaks to NiiVue.
import { isOriented, preferSform } from "./nifti.js";

const AXIAL = 0;
const CORONAL = 1;
const SAGITTAL = 2;
const RENDER = 4;
const TRANSPARENT_BELOW = 2; // colours run from 0, but nothing is drawn below cal_min
const LEAST_PROBABILITY = 0.03;
const WINDOWING = 9; // what dragging with the right button does
export const PLANES = { axial: AXIAL, coronal: CORONAL, sagittal: SAGITTAL };
const FIT = 0.88; // of a tile: the letters of the sides stand beside the head
const FIT_3D = 1.25;
const HALF = 0.4985; // a thin line of background stays between the four
const alone = (sliceType) => [{ sliceType, position: [0, 0, 1, 1] }];
const LAYOUTS = {
  four: [
    { sliceType: AXIAL, position: [0, 0, HALF, HALF] },
    { sliceType: CORONAL, position: [1 - HALF, 0, HALF, HALF] },
    { sliceType: SAGITTAL, position: [0, 1 - HALF, HALF, HALF] },
    { sliceType: RENDER, position: [1 - HALF, 1 - HALF, HALF, HALF] },
  ],
  axial: alone(AXIAL),
  coronal: alone(CORONAL),
  sagittal: alone(SAGITTAL),
  render: alone(RENDER),
};
export const LESION_COLOUR = { R: [255, 255], G: [126, 126], B: [22, 22], A: [0, 255], I: [0, 255] };
const PROBABILITY_COLOURS = {
  R: [59, 68, 33, 122, 253],
  G: [15, 58, 145, 209, 231],
  B: [112, 131, 140, 81, 37],
  A: [0, 255, 255, 255, 255],
  I: [0, 64, 128, 192, 255],
};
const OPTIONS = {
  backColor: [0.016, 0.022, 0.03, 1],
  crosshairColor: [0.5, 0.84, 0.83, 0.75],
  crosshairWidth: 1,
  crosshairGap: 6,
  fontColor: [0.8, 0.87, 0.9, 1],
  isRadiologicalConvention: true,
  showAllOrientationMarkers: true,
  show3Dcrosshair: true,
  dragMode: WINDOWING,
  dragAndDropEnabled: false,
  maxDrawUndoBitmaps: 32,
  loadingText: "",
  logLevel: "error",
};

let loading = null;

/** Load NiiVue; fails where it is not installed. */
export function loadNiivue() {
  loading ??= import("./vendor/niivue.js").catch((error) => {
    loading = null; // it may be installed in the meantime
    throw error;
  });
  return loading;
}

export class Viewer {
  /** Slices of one canvas; onMove(place) is told where the crosshair is. */
  constructor(canvas, onMove) {
    this.canvas = canvas;
    this.onMove = onMove;
    this.view = "four";
    this.plane = AXIAL;
    this.overlay = "mask";
    this.opacity = 0.46;
    this.attached = false;
    this.closed = false;
  }

  /** Show a scan (the bytes of a NIfTI file, which are changed) with a mask. Throws where there is no WebGL 2. */
  async open(scan, mask) {
    const { Niivue, NVImage } = await loadNiivue();
    this.NVImage = NVImage;
    const oriented = isOriented(scan);
    const nv = new Niivue({ ...OPTIONS, isOrientationTextVisible: oriented });
    // The keys are the page's own: NiiVue's are few, and one of them opens an alert.
    nv.keyDownListener = () => {};
    nv.keyUpListener = () => {};
    nv.onLocationChange = (where) => this.onMove(this.placeOf(where));
    this.nv = nv;
    nv.addColormap("lesion", LESION_COLOUR);
    nv.addColormap("probability", PROBABILITY_COLOURS);
    const look = { colormap: "lesion", opacity: this.opacity, cal_min: 0, cal_max: 1 };
    const images = [await this.image(scan, "scan", { colormap: "gray" }), await this.image(mask, "mask", look)];
    if (this.closed) return;
    await nv.attachToCanvas(this.canvas, true);
    this.attached = true;
    if (this.closed) {
      this.release();
      return;
    }
    nv.setCustomLayout(LAYOUTS.four);
    nv.scene.pan2Dxyzmm = [0, 0, 0, FIT];
    nv.scene.volScaleMultiplier = FIT_3D;
    nv.setRenderAzimuthElevation(120, 18);
    for (const image of images) nv.addVolume(image);
    const { cal_min: low, cal_max: high } = nv.volumes[0];
    this.initialWindow = [low, high];
    this.canvas.addEventListener("pointerdown", (event) => this.choosePlane(event));
    this.canvas.addEventListener("wheel", (event) => this.choosePlane(event), { capture: true });
    nv.createOnLocationChange();
  }

  image(bytes, name, options) {
    preferSform(bytes);
    return this.NVImage.loadFromUrl({ url: bytes.buffer, name: `${name}.nii`, ...options });
  }

  placeOf(where) {
    const [scan, mask, probabilities] = where.values;
    const vox = [...where.vox].map((v) => Math.round(v));
    const [, nx, ny, nz] = this.nv.volumes[0].dimsRAS;
    return {
      mm: [...where.mm].slice(0, 3),
      slices: { sagittal: [vox[0] + 1, nx], coronal: [vox[1] + 1, ny], axial: [vox[2] + 1, nz] },
      intensity: scan.value,
      inMask: mask?.value > 0,
      probability: probabilities?.value ?? null,
    };
  }

  /** The plane that was touched last is the one that the keys move through. */
  choosePlane(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    const tile = this.nv.tileIndex((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
    const plane = this.nv.screenSlices[tile]?.axCorSag;
    if (plane !== undefined && plane <= SAGITTAL) this.plane = plane;
  }

  setView(view) {
    this.view = view;
    this.plane = PLANES[view] ?? this.plane;
    this.nv.setCustomLayout(LAYOUTS[view]);
  }

  /** Show the mask, the probabilities, or none. probabilities() returns their bytes when they are first wanted. */
  async setOverlay(overlay, probabilities) {
    if (overlay === "probability" && this.nv.volumes.length < 3) {
      const look = { colormap: "probability", opacity: 0, cal_min: LEAST_PROBABILITY, cal_max: 1 };
      const image = await this.image(await probabilities(), "probabilities", look);
      image.colormapType = TRANSPARENT_BELOW;
      this.nv.addVolume(image);
    }
    this.overlay = overlay;
    this.applyOpacity();
    this.nv.createOnLocationChange(); // there may be one more value under the crosshair
  }

  setOpacity(opacity) {
    this.opacity = opacity;
    this.applyOpacity();
  }

  applyOpacity() {
    const { nv } = this;
    const editing = nv.drawBitmap !== null;
    nv.drawOpacity = this.opacity;
    nv.volumes[1].opacity = this.overlay === "mask" && !editing ? this.opacity : 0;
    if (nv.volumes[2]) nv.volumes[2].opacity = this.overlay === "probability" ? this.opacity : 0;
    nv.updateGLVolume();
  }

  /** Show other voxels as the mask; they are in the file's order. */
  setMask(voxels) {
    this.nv.volumes[1].img = voxels;
    this.nv.updateGLVolume();
  }

  get range() {
    const { global_min: low, global_max: high } = this.nv.volumes[0];
    return [low, high];
  }

  get window() {
    const { cal_min: low, cal_max: high } = this.nv.volumes[0];
    return { level: (low + high) / 2, width: high - low };
  }

  setWindow({ level, width }) {
    const scan = this.nv.volumes[0];
    [scan.cal_min, scan.cal_max] = [level - width / 2, level + width / 2];
    this.nv.updateGLVolume();
  }

  resetWindow() {
    const [low, high] = this.initialWindow;
    this.setWindow({ level: (low + high) / 2, width: high - low });
  }

  /** Move the crosshair to a point in scanner coordinates. */
  goTo(mm) {
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm, 0, true);
    this.nv.createOnLocationChange();
    this.nv.drawScene();
  }

  /** Move the crosshair in the plane that was touched last: to the right and up on the screen, or through its slices. */
  move(right, up, through) {
    if (this.view === "render") {
      const { renderAzimuth, renderElevation } = this.nv.scene;
      this.nv.setRenderAzimuthElevation(renderAzimuth - 5 * right, renderElevation + 5 * up);
      return;
    }
    // In radiological convention the patient's right is on the left of the screen.
    const [x, y, z] = {
      [AXIAL]: [-right, up, through],
      [CORONAL]: [-right, through, up],
      [SAGITTAL]: [through, right, up],
    }[this.plane];
    this.nv.moveCrosshairInVox(x, y, z);
  }

  /** Zoom the slices about the crosshair; a factor of 0 shows all again. */
  zoom(factor) {
    const { scene } = this.nv;
    const [x, y, z, now] = scene.pan2Dxyzmm;
    if (factor === 0) {
      scene.volScaleMultiplier = FIT_3D;
      this.nv.setPan2Dxyzmm([0, 0, 0, FIT]);
      return;
    }
    if (this.view === "render") {
      this.nv.setScale(Math.min(4, Math.max(0.5, scene.volScaleMultiplier * factor)));
      return;
    }
    const then = Math.min(8, Math.max(FIT, now * factor));
    const mm = this.nv.frac2mm(scene.crosshairPos);
    const shift = now - then;
    this.nv.setPan2Dxyzmm([x + shift * mm[0], y + shift * mm[1], z + shift * mm[2], then]);
  }

  /** Return what is shown as PNG, with a line below it. */
  screenshot(caption) {
    const { canvas, nv } = this;
    const strip = Math.max(24, Math.round(canvas.height * 0.035));
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [canvas.width, canvas.height + strip];
    const context = copy.getContext("2d");
    context.fillStyle = "#05070a";
    context.fillRect(0, 0, copy.width, copy.height);
    nv.drawScene(); // WebGL forgets what it drew as soon as it is on the screen
    context.drawImage(canvas, 0, 0);
    context.fillStyle = "#b9c6d0";
    context.font = `${Math.round(strip * 0.5)}px sans-serif`;
    context.textBaseline = "middle";
    context.fillText(caption, strip / 2, canvas.height + strip / 2);
    return new Promise((resolve) => copy.toBlob(resolve, "image/png"));
  }

  /** End, also while it is still opening: NiiVue must not lose its canvas in the midst of that. */
  close() {
    this.closed = true;
    if (this.attached) this.release();
  }

  /** Give memory of the graphics card back. */
  release() {
    this.nv.cleanup();
    this.nv.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}
