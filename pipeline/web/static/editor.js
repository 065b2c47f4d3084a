// Correcting a mask: paint, erase, undo; the result has the header of the model's mask.
import { LESION_COLOUR, PLANES } from "./viewer.js";
import { toFileOrder } from "./nifti.js";

const PAINT = 1;
const ERASE = 0;

export class Editor {
  /** Edits in a viewer; onChange() is called after each stroke. */
  constructor(viewer, onChange) {
    this.viewer = viewer;
    this.onChange = onChange;
    this.strokes = 0;
    this.tool = "paint";
    this.brush = 3;
  }

  get active() {
    return this.viewer.nv.drawBitmap !== null;
  }

  /** Begin with a mask: the bytes of a NIfTI file on the scan's grid. */
  async begin(mask) {
    const { nv } = this.viewer;
    const image = await this.viewer.image(mask.slice(), "drawing", {});
    nv.setDrawColormap({ ...LESION_COLOUR, I: [0, 1], labels: ["", "lesion"] });
    if (!nv.loadDrawing(image)) throw new Error("the mask does not lie on the scan's grid");
    nv.drawOpacity = this.viewer.opacity;
    nv.setDrawingEnabled(true);
    this.strokes = 0;
    nv.onDrawingChanged = (action) => {
      if (action === "draw") this.count(1);
    };
    this.setTool(this.tool);
    this.setBrush(this.brush);
    await this.viewer.setOverlay("mask");
  }

  setTool(tool) {
    this.tool = tool;
    this.viewer.nv.setPenValue(tool === "paint" ? PAINT : ERASE, false);
  }

  /** Set the width of the brush, in voxels of a slice. */
  setBrush(voxels) {
    this.brush = voxels;
    this.viewer.nv.opts.penSize = voxels;
  }

  /** Paint or erase at the crosshair, in the plane that was touched last: the way of the keyboard. */
  stamp() {
    const { nv, plane } = this.viewer;
    const [x, y, z] = nv.frac2vox(nv.scene.crosshairPos);
    nv.drawPenAxCorSag = Object.values(PLANES).includes(plane) ? plane : PLANES.axial;
    nv.drawPt(x, y, z, this.tool === "paint" ? PAINT : ERASE);
    nv.drawPenAxCorSag = -1;
    nv.drawAddUndoBitmap();
    nv.refreshDrawing(true);
    this.count(1);
  }

  undo() {
    if (!this.strokes) return;
    this.viewer.nv.drawUndo();
    this.count(-1);
  }

  count(step) {
    const kept = this.viewer.nv.opts.maxDrawUndoBitmaps - 1; // NiiVue forgets older strokes
    this.strokes = Math.min(this.strokes + step, kept);
    this.onChange();
  }

  /** Return how many voxels are marked. */
  voxels() {
    return this.viewer.nv.drawBitmap.reduce((sum, value) => sum + (value ? 1 : 0), 0);
  }

  /** Return the mask as drawn, in the order of the file. */
  result() {
    return toFileOrder(this.viewer.nv.drawBitmap, this.viewer.nv.volumes[0]);
  }

  end() {
    const { nv } = this.viewer;
    nv.onDrawingChanged = () => {};
    nv.setDrawingEnabled(false);
    nv.closeDrawing();
    this.strokes = 0;
    this.viewer.applyOpacity();
  }
}
