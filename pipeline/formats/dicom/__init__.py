"""From a folder, zip or multi-frame file of DICOM to a scan, and back to DICOM."""
