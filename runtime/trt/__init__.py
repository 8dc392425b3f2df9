"""TensorRT and TensorRT-RTX engines: found beside the bundle, checked by us, run behind `Engine`."""
