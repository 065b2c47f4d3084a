"""Who multiplies on the fast road: OpenVINO or ONNX Runtime, from the network that ``ar2unet export`` wrote."""
