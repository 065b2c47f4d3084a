// What the page itself has to know of NIfTI files: which geometry counts, and where the voxels are.

/** Return the bytes of a file, unpacked. */
export async function unpack(blob) {
  const start = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  const packed = start[0] === 0x1f && start[1] === 0x8b;
  const stream = packed ? blob.stream().pipeThrough(new DecompressionStream("gzip")) : blob.stream();
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Return bytes as a gzip file. */
export function pack(parts) {
  return new Response(new Blob(parts).stream().pipeThrough(new CompressionStream("gzip"))).blob();
}

function header(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const little = [348, 540].includes(view.getInt32(0, true));
  const first = view.getInt32(0, little) === 348;
  return {
    view,
    little,
    first,
    qform: first ? view.getInt16(252, little) : view.getInt32(344, little),
    sform: first ? view.getInt16(254, little) : view.getInt32(348, little),
    offset: first ? view.getFloat32(108, little) : Number(view.getBigInt64(168, little)),
  };
}

/** Tell whether a scan says which side is left. */
export function isOriented(bytes) {
  const { qform, sform } = header(bytes);
  return qform > 0 || sform > 0;
}

/**
 * Make the sform the only geometry wherever there is one, in place. That is how this software reads a scan; the viewer
 * would take the qform if that has the higher code.
 */
export function preferSform(bytes) {
  const { view, little, first, sform } = header(bytes);
  if (sform <= 0) return;
  if (first) view.setInt16(252, 0, little);
  else view.setInt32(344, 0, little);
}

/** Return the voxels of an uint8 mask, in the file's own order. */
export function maskVoxels(bytes) {
  return bytes.subarray(header(bytes).offset);
}

/** Return a mask with the header of another, bit by bit, as a gzip file. */
export function withVoxels(bytes, voxels) {
  return pack([bytes.subarray(0, header(bytes).offset), voxels]);
}

/**
 * Put a drawing, which the viewer keeps along R, A, S, into the order of the file.
 * image tells where its voxels are: dimsRAS, and for each axis the step and start in the file.
 */
export function toFileOrder(drawing, { dimsRAS, img2RASstep: step, img2RASstart: start }) {
  const voxels = new Uint8Array(drawing.length);
  const [, nx, ny, nz] = dimsRAS;
  let at = 0;
  for (let z = 0; z < nz; z += 1) {
    for (let y = 0; y < ny; y += 1) {
      let to = start[0] + start[1] + start[2] + y * step[1] + z * step[2];
      for (let x = 0; x < nx; x += 1, at += 1, to += step[0]) voxels[to] = drawing[at] ? 1 : 0;
    }
  }
  return voxels;
}
