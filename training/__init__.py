"""Train, evaluate and export freespace networks. Needs the extra ``train`` (torch, onnx)."""
